package monitor

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

// slowEnd is an engine whose containers can't be started, and whose processes do not end before dies is closed.
type slowEnd struct {
	forkEngine
	starts *atomic.Int32
	dies   chan struct{}
}

type slowEndContainer struct {
	engine.Container
	e slowEnd
}

func (e slowEnd) Create(ctx context.Context, c *engine.Config) (engine.Container, error) {
	ctr, err := e.forkEngine.Create(ctx, c)
	return slowEndContainer{ctr, e}, err
}

func (c slowEndContainer) Start(context.Context) error {
	c.e.starts.Add(1)
	return errors.New("refused")
}

func (c slowEndContainer) Kill(ctx context.Context) error {
	select {
	case <-c.e.dies:
		return c.Container.Kill(ctx)
	default:
		return nil
	}
}

// A start that failed is not tried again while the container's end is still under way: an OCI runtime would find the
// program that a start has let go which a former cri-monitor had begun.
func TestStartOfFailed(t *testing.T) {
	e := slowEnd{forkEngine: forkEngine{theReaper()}, starts: &atomic.Int32{}, dies: make(chan struct{})}
	n := newNodeWith(t, func(*OCIRuntime) (engine.Engine, error) { return e, nil })
	if _, err := n.Create(t.Context(), n.request("c", "true")); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Start(t.Context(), "c"); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Error(err)
	}
	soon, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := n.Start(soon, "c"); err == nil {
		t.Error("started again")
	}
	close(e.dies)
	if err := n.Kill(t.Context(), "c"); err != nil {
		t.Error(err)
	}
	if _, err := n.Start(t.Context(), "c"); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "refused") {
		t.Error(err)
	}
	if starts := e.starts.Load(); starts != 1 {
		t.Errorf("%d starts", starts)
	}
}
