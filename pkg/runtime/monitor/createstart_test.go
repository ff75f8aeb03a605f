package monitor

import (
	"context"
	"net"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
)

// TestCreateStart: a create that starts gives what a create and a start give, one after the other.
func TestCreateStart(t *testing.T) {
	n := newNode(t)
	for name, finish := range map[string]func(context.Context) error{"plain": nil, "into": func(context.Context) error { return nil }} {
		req := n.into(name, finish)
		req.Start = true
		st, err := n.Create(t.Context(), req)
		if err != nil || st.Status != Running || st.StartedAt.IsZero() || st.Pid == 0 {
			t.Errorf("%s: %+v, %v", name, st, err)
		}
		if now, err := n.State(t.Context(), name); err != nil || now != st {
			t.Errorf("%s: it is %+v, %v; the answer was %+v", name, now, err, st)
		}
		if _, err := n.Start(t.Context(), name); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s: a second start: %v", name, err)
		}
	}
}

// TestCreateStartFails: the create succeeds and tells why the program can't be executed.
func TestCreateStartFails(t *testing.T) {
	n := newNode(t)
	req := n.request("c", "")
	req.Spec.Process.Args, req.Start = []string{"/missing"}, true
	st, err := n.Create(t.Context(), req)
	if err != nil || st.StartError == "" || st.Status == Running {
		t.Fatalf("%+v, %v", st, err)
	}
	if st, err = n.Wait(t.Context(), "c"); err != nil || st.Status != Stopped || st.ExitCode != startErrorCode {
		t.Errorf("%+v, %v", st, err)
	}
	if err := n.Delete(t.Context(), "c"); err != nil {
		t.Error(err)
	}
}

// TestCreateStartCutShort: a start within a create that the death of a cri-monitor has cut short fails as others do.
func TestCreateStartCutShort(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		creates := 0
		for {
			uc, err := ln.AcceptUnix()
			if err != nil {
				return
			}
			for err == nil {
				var f *frame
				if f, err = readFrame(uc, nil); err != nil {
					break
				}
				switch f.kind {
				case kindHello:
					err = writeFrame(uc, kindOK, f.id, hello{protocolMin, protocolMax})
				case kindCreate:
					if creates++; creates == 1 {
						err = errdefs.ErrUnavailable
						break
					}
					err = writeFrame(uc, kindError, f.id, encodeError(errdefs.ErrAlreadyExists))
				case kindState:
					err = writeFrame(uc, kindOK, f.id, State{ID: "c", Status: Created, StartError: "it was cut short"})
				}
			}
			uc.Close()
		}
	}()
	ready := make(chan struct{})
	close(ready)
	c := &Client{socket: socket, keeper: &keeper{ready: ready}}
	if st, err := c.Create(t.Context(), &CreateRequest{ID: "c", Start: true}); !errdefs.IsUnavailable(err) {
		t.Errorf("%+v, %v", st, err)
	}
	for _, uc := range c.idle {
		uc.Close()
	}
}
