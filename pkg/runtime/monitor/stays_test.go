package monitor

import (
	"context"
	"os"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/seed-9a14075a/cri-server/internal/testns"
)

// TestStays: the connection of an exec that was released serves the next calls, that of any other is closed.
func TestStays(t *testing.T) {
	for name, tt := range map[string]struct {
		release, older, wait, want bool
	}{
		"released":                        {release: true, wait: true, want: true},
		"not released":                    {wait: true},
		"before its end":                  {},
		"released too soon":               {release: true},
		"by a cri-monitor that is older":  {release: true, older: true, wait: true},
		"and one that was never released": {older: true, wait: true},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.run(n.request("c", `sleep 1000`))
			for range 3 {
				n.stocked.Wait()
				program := []string{"true"}
				if !tt.wait {
					program = []string{"sleep", "1000"}
				}
				x, err := n.Exec(t.Context(), &ExecRequest{ID: "c", Process: &specs.Process{Args: program}})
				if err != nil {
					t.Fatal(err)
				}
				if tt.older {
					x.stays = false
				}
				if tt.wait {
					<-x.Ended()
					if code, err := x.Wait(t.Context()); code != 0 || err != nil {
						t.Errorf("exec: %d, %v", code, err)
					}
				}
				if tt.release {
					x.Release()
				}
				for range 2 { // the second must not take it from others
					if err := x.Close(); err != nil {
						t.Error(err)
					}
				}
				n.stocked.Wait()
				n.Client.mu.Lock()
				got := len(n.idle) > 0 && n.idle[len(n.idle)-1] == x.s.uc
				n.Client.mu.Unlock()
				if got != tt.want {
					t.Errorf("kept for others: %v, want %v", got, tt.want)
				}
				if _, err := n.State(t.Context(), "c"); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// TestReleasedTooSoon: a release that cri-monitor has passed over, since the program still ran, leaves the connection to nobody.
func TestReleasedTooSoon(t *testing.T) {
	n := newNode(t)
	n.run(n.request("c", `sleep 1000`))
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	x, err := n.Exec(t.Context(), &ExecRequest{ID: "c", Process: &specs.Process{Args: []string{"cat"}}, Stdin: r})
	r.Close()
	if err != nil {
		t.Fatal(err)
	}
	x.Release()
	w.Close()
	<-x.Ended()
	if err := x.Close(); err != nil {
		t.Error(err)
	}
	if _, err := n.State(t.Context(), "c"); err != nil { // else unheard, for minutes
		t.Error(err)
	}
}

// TestReleaseInAFreeze: a release that was read when a freeze began, for an upgrade, is what ends the exec after it; the next
// exec on this connection is not taken for it.
func TestReleaseInAFreeze(t *testing.T) {
	n := newNode(t)
	n.s.cfg.Reaper = theReaper()
	n.run(n.request("c", `sleep 1000`))
	exec := func() *Exec {
		ctx, cancel := context.WithTimeout(t.Context(), testns.Patience(20*time.Second))
		defer cancel()
		n.stocked.Wait()
		x, err := n.Exec(ctx, &ExecRequest{ID: "c", Process: &specs.Process{Args: []string{"true"}}})
		if err != nil {
			t.Fatal(err)
		}
		if code, err := x.Wait(ctx); code != 0 || err != nil {
			t.Fatalf("exec: %d, %v", code, err)
		}
		return x
	}
	for range 3 {
		x := exec()
		thaw, err := n.s.freeze(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		held := 0
		for _, c := range n.s.connections() {
			if e, ok := c.task.(*execTask); ok && e.told {
				c.push(&frame{kind: kindRelease, id: 2})
				held++
			}
		}
		thaw()
		if held != 1 {
			t.Fatalf("%d execs", held)
		}
		x.released = true // instead of Release
		if err := x.Close(); err != nil {
			t.Error(err)
		}
		n.stocked.Wait()
		n.Client.mu.Lock()
		last := n.idle[len(n.idle)-1]
		n.Client.mu.Unlock()
		if last != x.s.uc {
			t.Fatal("the connection was not kept")
		}
	}
	x := exec()
	x.Release()
	if err := x.Close(); err != nil {
		t.Error(err)
	}
}
