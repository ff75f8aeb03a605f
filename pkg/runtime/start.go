package runtime

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"github.com/seed-9a14075a/cri-server/pkg/faultpoint"
	"github.com/seed-9a14075a/cri-server/pkg/operation"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/monitor"
)

// startTimeout bounds StartContainer, whoever waits for it.
const startTimeout = 2 * time.Minute

// Start lets a created container's program run. A retry of a start that succeeded is no error. When the program
// can't be executed the container is exited with StartError and code 128.
func (c *Containers) Start(ctx context.Context, id string) error {
	ctr, err := c.Get(id)
	if err != nil {
		return err
	}
	_, err = operation.Do(ctx, c.ops, "start "+ctr.ID, startTimeout, func(ctx context.Context, op *operation.Op) (*Container, error) {
		unlock, err := c.locks.Lock(ctx, ctr.ID)
		if err != nil {
			return nil, err
		}
		defer unlock()
		return c.start(ctx, op, ctr.ID)
	})
	return err
}

func (c *Containers) start(ctx context.Context, op *operation.Op, id string) (*Container, error) {
	ctr, err := c.Get(id)
	if err != nil {
		return nil, err
	}
	switch ctr.State {
	case Created:
	case Running:
		return ctr, nil
	default:
		return nil, fmt.Errorf("container %s is %s, it can't be started: %w", ctr.ID, ctr.State, errdefs.ErrFailedPrecondition)
	}
	op.Stage("start")
	if err := faultpoint.Hit("container.start.begin"); err != nil {
		return nil, err
	}
	st, err := c.cfg.Monitor.Start(ctx, ctr.ID)
	if err != nil {
		// An earlier start may have been carried out though its answer was lost.
		if now, e := c.cfg.Monitor.State(ctx, ctr.ID); e == nil && now.Status == monitor.Running {
			st, err = now, nil
		}
	}
	if err != nil {
		if !errdefs.IsUnavailable(err) { // the monitor answered: the container can't run
			if _, e := c.finish(ctr.ID, func(n *Container) {
				n.FinishedAt = time.Now()
				n.ExitCode, n.Reason, n.Message = codeStartError, ReasonStartError, err.Error()
			}); e != nil {
				c.cfg.Log.Error("record the failed start", "container", ctr.ID, "error", e)
			}
		}
		return nil, fmt.Errorf("start container %s: %w", ctr.ID, err)
	}
	op.Stage("publish")
	faultpoint.Pass("container.start.started")
	started, err := c.note(ctr.ID, func(n *Container) {
		if n.State == Created { // it may have ended meanwhile
			n.State = Running
		}
		n.StartedAt, n.Pid = st.StartedAt, st.Pid
		if n.State == Exited {
			n.Pid = 0
		}
		n.StartTimeline = op.Timeline()
		n.StartTimeline.Running = false
	})
	faultpoint.Pass("container.start.published")
	if started != nil && err != nil {
		c.cfg.Log.Error("record the start of a container", "container", ctr.ID, "error", err)
		err = nil
	}
	return started, err
}
