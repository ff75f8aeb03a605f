package runtime

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"

	"github.com/seed-9a14075a/cri-server/internal/mountpoint"
	"github.com/seed-9a14075a/cri-server/pkg/cgroupdriver"
	"github.com/seed-9a14075a/cri-server/pkg/faultpoint"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/monitor"
)

// cleanupTimeout bounds what follows an exit: the monitor's entry and the cgroup are removed.
const cleanupTimeout = time.Minute

// Exited takes note that a container has ended, as told by cri-monitor. It returns false if there is no such
// container, or if it is still being created (then Create sees to it).
func (c *Containers) Exited(st monitor.State) bool {
	c.mu.Lock()
	ctr := c.byID[st.ID]
	if ctr != nil && ctr.State == Creating {
		c.died[st.ID] = true // for publish to find
	}
	c.mu.Unlock()
	if ctr == nil {
		return false
	}
	if ctr.State == Creating || ctr.Broken != "" {
		return true
	}
	_, err := c.finish(st.ID, func(n *Container) { apply(n, st) })
	if err != nil && !errdefs.IsNotFound(err) {
		c.cfg.Log.Error("record the end of a container", "container", st.ID, "error", err)
	}
	return true
}

// Started takes note that a container's program runs, as told by cri-monitor. It matters only where no Start is there to
// do it: the server was killed while the monitor carried out a start, or lost the answer.
func (c *Containers) Started(st monitor.State) {
	c.mu.RLock()
	ctr := c.byID[st.ID]
	c.mu.RUnlock()
	if ctr == nil || ctr.State != Created || c.ops.Active("start "+st.ID) {
		return
	}
	_, err := c.note(st.ID, func(n *Container) {
		if n.State == Created {
			n.State, n.StartedAt, n.Pid = Running, st.StartedAt, st.Pid
		}
	})
	if err != nil && !errdefs.IsNotFound(err) {
		c.cfg.Log.Error("record the start of a container", "container", st.ID, "error", err)
	}
}

// lost records the end of a container of which cri-monitor knows nothing.
func (c *Containers) lost(id, message string) error {
	_, err := c.finish(id, func(n *Container) {
		n.FinishedAt, n.ExitCode, n.Reason, n.Message = time.Now(), codeUnknown, ReasonUnknown, message
	})
	return err
}

// apply puts the monitor's word on how a container ended into its picture.
func apply(n *Container, st monitor.State) {
	n.FinishedAt, n.ExitCode = st.FinishedAt, int32(st.ExitCode)
	if n.StartedAt.IsZero() {
		n.StartedAt = st.StartedAt
	}
	switch {
	case st.StartError != "":
		n.ExitCode, n.Reason, n.Message = codeStartError, ReasonStartError, st.StartError
	case st.OOMKilled:
		n.Reason = ReasonOOMKilled
	case st.ExitUnknown:
		n.Reason, n.Message = ReasonUnknown, "the container ended while cri-monitor was being replaced after a crash; before Linux 6.15 its exit code can't be read then"
	case st.ExitCode == 0:
		n.Reason = ReasonCompleted
	default:
		n.Reason = ReasonError
	}
}

// finish records a container's end, once, and then takes down what is left of it but its writable layer. The end is
// on record before the monitor forgets it: if it can't be recorded the monitor keeps it until the container is removed.
func (c *Containers) finish(id string, f func(*Container)) (*Container, error) {
	first := false
	ctr, err := c.note(id, func(n *Container) {
		if first = n.State != Exited; first {
			n.State, n.Pid = Exited, 0
			f(n)
		}
	})
	if err != nil || !first {
		c.mu.Lock()
		delete(c.released, id) // cri-monitor, which tells of it, has it still, or again
		c.mu.Unlock()
		return ctr, err
	}
	faultpoint.Pass("container.exit.noted")
	c.reaping.Add(1)
	go func() {
		defer c.reaping.Done()
		ctx, cancel := context.WithTimeout(context.Background(), cleanupTimeout)
		defer cancel()
		if err := c.release(ctx, ctr); err != nil {
			c.cfg.Log.Warn("clean up after a container's end; removing it tries again", "container", id, "error", err)
		}
	}()
	return ctr, nil
}

// release takes down what a container is made of in the kernel. Idempotent; of one that has ended it is done once, at its end, and
// its removal waits for that.
func (c *Containers) release(ctx context.Context, ctr *Container) error {
	unlock, err := c.releases.Lock(ctx, ctr.ID)
	if err != nil {
		return fmt.Errorf("its end is being cleaned up: %w", err)
	}
	defer unlock()
	c.mu.RLock()
	now, done := c.byID[ctr.ID], c.released[ctr.ID]
	c.mu.RUnlock()
	if done || now == nil {
		return nil
	}
	if err := c.takeDown(ctx, ctr); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	// Of one whose creation has failed cri-monitor may still come to know.
	if now = c.byID[ctr.ID]; now != nil && now.State == Exited {
		c.released[ctr.ID] = true
	}
	return nil
}

func (c *Containers) takeDown(ctx context.Context, ctr *Container) error {
	if err := c.cfg.Monitor.Delete(ctx, ctr.ID); err != nil {
		return err
	}
	if err := faultpoint.Hit("container.release.deleted"); err != nil {
		return err
	}
	if ctr.Broken != "" {
		return c.releaseCgroup(ctx, ctr.ID)
	}
	if ctr.CgroupPath == "" {
		return nil
	}
	if err := c.cfg.Cgroups.Delete(ctx, ctr.CgroupPath); err != nil {
		return err
	}
	if err := faultpoint.Hit("container.release.cgroup"); err != nil {
		return err
	}
	return c.releaseState(ctr)
}

// releaseState removes what an OCI runtime keeps of a container, now that it has neither processes nor a cgroup: a runtime
// whose create was cut short together with cri-monitor has left it, and no cri-monitor knows of it.
func (c *Containers) releaseState(ctr *Container) error {
	dir := c.cfg.Handlers.StateDir(ctr.Handler, ctr.ID)
	if dir == "" {
		return nil
	}
	// With what the runtime may have mounted there it stays, and the removal is tried again.
	return mountpoint.RemoveAll(dir)
}

// releaseCgroup removes the cgroup of a container whose record, which would name it, can't be read.
func (c *Containers) releaseCgroup(ctx context.Context, id string) error {
	paths, err := c.cfg.Cgroups.List()
	if err != nil {
		return err
	}
	for _, p := range paths {
		if cgroupdriver.ID(p) != id {
			continue
		}
		if err := c.cfg.Cgroups.Delete(ctx, p); err != nil {
			return err
		}
	}
	return nil
}
