package monitor

import (
	"context"
	"testing"
	"time"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/reaper"
)

// killerEngine needs a process to kill what is left of a container, as an OCI runtime does.
type killerEngine struct {
	forkEngine
	reached, goOn chan struct{}
}

type killerContainer struct {
	engine.Container
	e killerEngine
}

func (e killerEngine) Create(ctx context.Context, c *engine.Config) (engine.Container, error) {
	ctr, err := e.forkEngine.Create(ctx, c)
	if err != nil {
		return nil, err
	}
	return killerContainer{ctr, e}, nil
}

func (c killerContainer) Kill(ctx context.Context) error {
	select {
	case c.e.reached <- struct{}{}:
		<-c.e.goOn
	default: // not by its end
	}
	if _, err := (&reaper.Command{Path: busybox, Args: []string{"true"}}).Run(ctx, c.e.r); err != nil {
		return err
	}
	return c.Container.Kill(ctx)
}

// A freeze lets the end of a container come to its end, for which the engine may need a process and somebody who reaps it.
func TestFreezeWhileAContainerEnds(t *testing.T) {
	e := killerEngine{forkEngine{theReaper()}, make(chan struct{}, 1), make(chan struct{})}
	n := newNodeWith(t, func(*OCIRuntime) (engine.Engine, error) { return e, nil })
	n.s.cfg.Reaper = theReaper()
	req := n.request("c", "true")
	req.Spec.Linux.Namespaces = nil // else its end is that of all its processes
	n.run(req)
	<-e.reached
	ctx, cancel := context.WithTimeout(t.Context(), testns.Patience(20*time.Second))
	defer cancel()
	frozen := make(chan error, 1)
	begun, _ := n.s.freezer.enter(0)
	go func() {
		thaw, err := n.s.freeze(ctx)
		if err == nil {
			if n.s.ending() != nil {
				t.Error("a container is between its end and its state")
			}
			thaw()
		}
		frozen <- err
	}()
	<-begun
	close(e.goOn)
	if err := <-frozen; err != nil {
		t.Error(err)
	}
	if st := n.stopped("c"); st.ExitCode != 0 {
		t.Errorf("%+v", st)
	}
}
