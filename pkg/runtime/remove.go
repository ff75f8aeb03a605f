package runtime

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"github.com/seed-9a14075a/cri-server/pkg/faultpoint"
	"github.com/seed-9a14075a/cri-server/pkg/operation"
)

// Remove ends a container if it still runs, removes its writable layer and forgets it. The log stays: it is the
// caller's. Idempotent; an unknown id is no error, as the CRI wants it. ctx's operation, if it has one, is told the stages.
func (c *Containers) Remove(ctx context.Context, id string) error {
	return c.remove(ctx, id, operation.FromContext(ctx).Stage)
}

func (c *Containers) remove(ctx context.Context, id string, stage func(name string)) error {
	ctr, err := c.Get(id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	stage("stop")
	if err := c.Stop(ctx, ctr.ID, 0); err != nil {
		return err
	}
	stage("wait for other calls")
	unlock, err := c.locks.Lock(ctx, ctr.ID)
	if err != nil {
		return fmt.Errorf("container %s is busy: %w", ctr.ID, err)
	}
	defer unlock()
	if !c.Known(ctr.ID) {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout) // what was begun is finished
	defer cancel()
	return c.discard(ctx, ctr, stage)
}

// RemoveSandbox removes all containers of a sandbox.
func (c *Containers) RemoveSandbox(ctx context.Context, sandboxID string) error {
	list, stage := c.OfSandbox(sandboxID), operation.FromContext(ctx).Stage
	if len(list) > 1 { // each is at another one
		stage = func(string) {}
	}
	var g errgroup.Group // without a common context, as in StopSandbox
	for _, ctr := range list {
		if ctr.State == Creating {
			g.Go(func() error { return c.abort(ctx, ctr) })
		} else {
			g.Go(func() error { return c.remove(ctx, ctr.ID, stage) })
		}
	}
	err := g.Wait()
	c.rates.forget(sandboxID)
	return err
}

// takeBack takes down a container that was not finished, with its record. What can't be taken down is listed from then
// on, so that it can be stopped and removed; its record stays as it is, so the next start tries again, too.
func (c *Containers) takeBack(ctx context.Context, ctr *Container) error {
	err := c.discard(ctx, ctr, operation.FromContext(ctx).Stage)
	if err == nil {
		return nil
	}
	unlock, lerr := c.edits.Lock(context.WithoutCancel(ctx), ctr.ID)
	if lerr != nil {
		return errors.Join(err, lerr)
	}
	defer unlock()
	left := *ctr
	left.State, left.Leftover, left.Message = Unknown, true, "the container was not finished, and can't be taken down: "+err.Error()
	c.set(&left)
	return err
}

// discard takes down a container and its record. If something can't be taken down the record stays, so that a retry or
// the next start finds it.
func (c *Containers) discard(ctx context.Context, ctr *Container, stage func(name string)) error {
	stage("processes and cgroup")
	if err := c.release(ctx, ctr); err != nil {
		return fmt.Errorf("remove container %s: %w", ctr.ID, err)
	}
	stage("snapshot")
	if err := c.cfg.Images.RemoveSnapshot(ctx, ctr.ID); err != nil {
		return fmt.Errorf("remove container %s: snapshot: %w", ctr.ID, err)
	}
	if err := faultpoint.Hit("container.remove.snapshot"); err != nil {
		return fmt.Errorf("remove container %s: %w", ctr.ID, err)
	}
	stage("volumes")
	if err := c.removeVolumes(ctx, ctr); err != nil {
		return fmt.Errorf("remove container %s: %w", ctr.ID, err)
	}
	stage("record")
	unlock, err := c.edits.Lock(ctx, ctr.ID) // a late change must not bring the record back
	if err != nil {
		return err
	}
	defer unlock()
	if err := faultpoint.Hit("container.remove.record"); err != nil {
		return fmt.Errorf("remove container %s: %w", ctr.ID, err)
	}
	if err := c.records.Delete(ctr.ID); err != nil {
		return fmt.Errorf("remove container %s: record: %w", ctr.ID, err)
	}
	c.rates.forget(ctr.ID)
	c.layers.forget(ctr.ID)
	c.drop(ctr)
	return nil
}
