package monitor

import (
	"errors"
	"net"
	"path/filepath"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// TestBrief: the start of a program is told with its end, or apart when that lets wait for itself; the session is the same.
func TestBrief(t *testing.T) {
	n := newNode(t)
	n.run(n.request("c", "sleep 1000"))
	seen := map[uint64]bool{}
	for _, tt := range []struct {
		program []string
		code    int
	}{{[]string{"true"}, 0}, {[]string{"false"}, 1}, {[]string{"sh", "-c", "sleep 0.05; exit 3"}, 3}} {
		for range 5 {
			x, err := n.Exec(t.Context(), &ExecRequest{ID: "c", Process: &specs.Process{Args: tt.program}, Brief: true})
			if err != nil {
				t.Fatal(err)
			}
			if code, err := x.Wait(t.Context()); code != tt.code || err != nil {
				t.Errorf("%q: code %d, %v", tt.program, code, err)
			}
			if x.Pid == 0 || seen[x.session] || !x.stays {
				t.Errorf("%q: pid %d, session %d, %v", tt.program, x.Pid, x.session, x.stays)
			}
			seen[x.session] = true
			x.Release()
			if err := errors.Join(x.Close(), x.Close()); err != nil {
				t.Error(err)
			}
		}
	}
	if _, err := n.Exec(t.Context(), &ExecRequest{ID: "c", Process: &specs.Process{}, Brief: true}); err == nil {
		t.Error("exec of nothing")
	}
}

// TestBriefKilled: a session that is not released is killed when its client leaves, whichever way its start was told.
func TestBriefKilled(t *testing.T) {
	n := newNode(t)
	n.run(n.request("c", "sleep 1000"))
	x, err := n.Exec(t.Context(), &ExecRequest{ID: "c", Process: &specs.Process{Args: []string{"sleep", "1000"}}, Brief: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := x.Kill(); err != nil {
		t.Error(err)
	}
	if code, err := x.Wait(t.Context()); code != 137 || err != nil {
		t.Errorf("code %d, %v", code, err)
	}
	if err := x.Close(); err != nil {
		t.Error(err)
	}
}

// TestBriefAnswers are those of older cri-monitors, which don't know the word, and what none gives.
func TestBriefAnswers(t *testing.T) {
	type answer struct {
		kind kind
		body any
	}
	for name, tt := range map[string]struct {
		answers []answer
		ok      bool
	}{
		"older":    {[]answer{{kindStarted, execStarted{Pid: 7, Session: 1}}, {kindExited, map[string]int{"code": 4}}}, true},
		"present":  {[]answer{{kindExited, execExited{4, &execStarted{Pid: 7, Session: 1, Stays: true}}}}, true},
		"no start": {[]answer{{kindExited, execExited{Code: 4}}}, false},
		"no JSON":  {[]answer{{kindExited, "x"}}, false},
		"other":    {[]answer{{kindEvent, Event{}}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "s")
			ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
			if err != nil {
				t.Fatal(err)
			}
			defer ln.Close()
			served := make(chan error, 1)
			go func() {
				uc, err := ln.AcceptUnix()
				if err != nil {
					served <- err
					return
				}
				defer uc.Close()
				for f := (*frame)(nil); err == nil; {
					if f, err = readFrame(uc, nil); err != nil {
						break // the client has gone
					}
					switch f.kind {
					case kindHello:
						err = writeFrame(uc, kindOK, f.id, hello{protocolMin, protocolMax})
					case kindExec:
						for _, a := range tt.answers {
							err = errors.Join(err, writeFrame(uc, a.kind, f.id, a.body))
						}
					}
				}
				served <- nil
			}()
			client, err := Dial(t.Context(), socket)
			if err != nil {
				t.Fatal(err)
			}
			x, err := client.Exec(t.Context(), &ExecRequest{ID: "c", Process: &specs.Process{Args: []string{"true"}}, Brief: true})
			ln.Close() // it serves one connection
			if (err == nil) != tt.ok {
				t.Errorf("exec: %v", err)
			}
			if x != nil {
				if code, err := x.Wait(t.Context()); code != 4 || err != nil || x.Pid != 7 || x.session != 1 {
					t.Errorf("code %d, %v, pid %d, session %d", code, err, x.Pid, x.session)
				}
				_ = x.Close()
			}
			_ = client.Close()
			if err := <-served; err != nil {
				t.Error(err)
			}
		})
	}
}

// TestSessionNumbers: a session is called what its client says, unless another is, or the number is one of the server's own.
func TestSessionNumbers(t *testing.T) {
	const chosen = clientNumbers + 7
	e := &execSet{}
	for i, tt := range []struct{ chosen, want uint64 }{{0, 1}, {chosen, chosen}, {chosen, 2}, {9, 3}, {0, 4}, {chosen + 1, chosen + 1}} {
		x := &session{}
		if e.begin(x, tt.chosen); x.n != tt.want || e.live[x.n] != x {
			t.Errorf("%d: session %d, want %d", i, x.n, tt.want)
		}
	}
	e = &execSet{dirs: []*sessionCgroup{{n: chosen, ended: true}}} // which has left processes
	for _, n := range []uint64{chosen, 5} {
		e.used(n)
	}
	x := &session{}
	if e.begin(x, chosen); x.n != 6 {
		t.Errorf("session %d", x.n)
	}
}
