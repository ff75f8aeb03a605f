package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

// lateEngine starts a session only when it is told to.
type lateEngine struct {
	forkEngine
	reached, goOn chan struct{}
}

type lateContainer struct {
	engine.Container
	e lateEngine
}

func (e lateEngine) Create(ctx context.Context, c *engine.Config) (engine.Container, error) {
	ctr, err := e.forkEngine.Create(ctx, c)
	if err != nil {
		return nil, err
	}
	return lateContainer{ctr, e}, nil
}

func (c lateContainer) Exec(ctx context.Context, x *engine.ExecConfig) (engine.Process, error) {
	close(c.e.reached)
	<-c.e.goOn
	return c.Container.Exec(ctx, x)
}

// TestFreezeGivenUp: an exec whose start has outlasted a freeze, which was given up, is heard again: it ends with its client.
func TestFreezeGivenUp(t *testing.T) {
	e := lateEngine{forkEngine{theReaper()}, make(chan struct{}), make(chan struct{})}
	n := newNodeWith(t, func(*OCIRuntime) (engine.Engine, error) { return e, nil })
	n.s.cfg.Reaper = theReaper()
	n.run(n.request("c", "sleep 1000"))
	type result struct {
		x   *Exec
		err error
	}
	begun := make(chan result, 1)
	go func() {
		x, err := n.Exec(t.Context(), &ExecRequest{ID: "c", Process: &specs.Process{Args: []string{"sleep", "1000"}}})
		begun <- result{x, err}
	}()
	<-e.reached
	ctx, cancel := context.WithCancel(t.Context())
	frozen, _ := n.s.freezer.enter(0)
	go func() {
		<-frozen
		cancel()
	}()
	if _, err := n.s.freeze(ctx); !errdefs.IsUnavailable(err) {
		t.Fatalf("freeze: %v", err)
	}
	close(e.goOn)
	r := <-begun
	if r.err != nil {
		t.Fatal(r.err)
	}
	if err := r.x.Close(); err != nil {
		t.Error(err)
	}
	eventually(t, "the exec's process ends with its connection", func() bool { return unix.Kill(r.x.Pid, 0) == unix.ESRCH })
}

// restorer begins a restore, and has sent all but the end of it.
func (n *node) restorer() *net.UnixConn {
	n.t.Helper()
	uc, err := n.connect(n.t.Context())
	if err != nil {
		n.t.Fatal(err)
	}
	for _, id := range []string{"/journal/none", "none"} {
		if err := writeFrame(uc, kindRestore, 1, kept{ID: id, Data: json.RawMessage(`{}`)}); err != nil {
			n.t.Fatal(err)
		}
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		n.t.Fatal(err)
	}
	eventually(n.t, "the second is read, the first in work", func() bool {
		unread := -1
		_ = raw.Control(func(fd uintptr) { unread, _ = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }) // unix(7)
		return unread == 0
	})
	return uc
}

// TestFreezeWithinARestore: a freeze does not wait for the rest of a restore, which is begun anew after it.
func TestFreezeWithinARestore(t *testing.T) {
	n := newNode(t)
	n.s.cfg.Reaper = theReaper()
	for range 20 {
		uc := n.restorer()
		ctx, cancel := context.WithTimeout(t.Context(), testns.Patience(10*time.Second))
		thaw, err := n.s.freeze(ctx)
		cancel()
		if err != nil {
			uc.Close()
			t.Fatal(err)
		}
		thaw()
		if err := uc.SetDeadline(time.Now().Add(testns.Patience(10 * time.Second))); err != nil {
			t.Fatal(err)
		}
		_ = writeFrame(uc, kindRestore, 1, kept{Synced: true})
		f, err := readFrame(uc, nil)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			t.Error("nobody answers")
		case err == nil && f.kind != kindOK && !errdefs.IsUnavailable(f.err()):
			t.Errorf("answer of kind %d, %v", f.kind, f.err())
		}
		uc.Close()
	}
}

// TestRestoreInPart: what follows the part of a restore that could not be taken is not taken for all.
func TestRestoreInPart(t *testing.T) {
	n := newNode(t)
	uc := n.restorer()
	defer uc.Close()
	_ = writeFrame(uc, kindRestore, 1, []int{1})
	_ = writeFrame(uc, kindRestore, 1, kept{Synced: true})
	_ = uc.SetReadDeadline(time.Now().Add(testns.Patience(10 * time.Second)))
	f, err := readFrame(uc, nil)
	if err != nil || !errdefs.IsInvalidArgument(f.err()) {
		t.Fatalf("%+v, %v", f, err)
	}
	if f, err := readFrame(uc, nil); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection goes on: %+v, %v", f, err)
	}
}
