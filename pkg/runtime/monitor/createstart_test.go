package monitor

import (
	"context"
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
