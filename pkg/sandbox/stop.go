package sandbox

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"

	"github.com/seed-9a14075a/cri-server/internal/mountpoint"
	"github.com/seed-9a14075a/cri-server/pkg/cgroupdriver"
	"github.com/seed-9a14075a/cri-server/pkg/faultpoint"
	"github.com/seed-9a14075a/cri-server/pkg/network/netns"
	"github.com/seed-9a14075a/cri-server/pkg/operation"
)

// Stop takes the sandbox down: pause, network, namespaces, cgroup, files. The pod's containers must have been stopped.
// Idempotent; an unknown id is no error, as the CRI wants it. ctx's operation, if it has one, is told the stages.
func (s *Sandboxes) Stop(ctx context.Context, id string) error {
	sb, err := s.Get(id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	unlock, err := s.locks.Lock(ctx, sb.ID)
	if err != nil {
		return fmt.Errorf("sandbox %s is busy: %w", sb.ID, err)
	}
	defer unlock()
	if _, err = s.stop(ctx, sb.ID); errdefs.IsNotFound(err) {
		return nil // removed meanwhile
	}
	return err
}

// stop is Stop with the sandbox's lock held.
func (s *Sandboxes) stop(ctx context.Context, id string) (*Sandbox, error) {
	sb, err := s.Get(id)
	if err != nil || sb.Released {
		return sb, err
	}
	if sb.Broken == "" && !sb.Stopping {
		if sb, err = s.change(id, retire); err != nil {
			return nil, err
		}
	}
	if err := faultpoint.Hit("sandbox.stop.retired"); err != nil {
		return nil, err
	}
	// The caller may leave; what was begun is finished.
	ctx = context.WithoutCancel(ctx)
	op := operation.FromContext(ctx)
	if sb.Broken != "" {
		if sb, err = s.locate(sb); err != nil {
			return nil, err
		}
	}
	if err := s.release(ctx, sb); err != nil {
		return nil, err
	}
	if err := faultpoint.Hit("sandbox.stop.released"); err != nil {
		return nil, err
	}
	if sb.Broken != "" {
		return sb, nil
	}
	op.Stage("record")
	return s.change(id, func(sb *Sandbox) { sb.Released, sb.Pid = true, 0 })
}

// release takes down everything that a sandbox is made of but its record. Each step is idempotent and is tried even if
// another failed.
func (s *Sandboxes) release(ctx context.Context, sb *Sandbox) error {
	op := operation.FromContext(ctx)
	var g errgroup.Group
	g.Go(func() error {
		if err := s.cfg.Monitor.Delete(ctx, sb.ID); err != nil {
			return fmt.Errorf("pause: %w", err)
		}
		if err := faultpoint.Hit("sandbox.stop.pause"); err != nil {
			return err
		}
		if sb.CgroupPath != "" {
			if err := s.cfg.Cgroups.Delete(ctx, sb.CgroupPath); err != nil {
				return fmt.Errorf("cgroup: %w", err)
			}
		}
		// What is left of an OCI runtime's create that was cut short together with cri-monitor.
		if dir := s.cfg.Handlers.StateDir(sb.Handler, sb.ID); dir != "" {
			if err := mountpoint.RemoveAll(dir); err != nil {
				return fmt.Errorf("state of the runtime: %w", err)
			}
		}
		return faultpoint.Hit("sandbox.stop.cgroup")
	})
	var detach, unpin error
	if sb.NetNS != "" {
		op.Stage("network")
		if detach = errors.Join(s.cfg.Network.Detach(ctx, s.pod(sb)), faultpoint.Hit("sandbox.stop.detached")); detach != nil {
			detach = fmt.Errorf("network: %w", detach)
		} else if unpin = netns.Remove(sb.NetNS); unpin != nil {
			unpin = fmt.Errorf("netns: %w", unpin)
		}
	}
	op.Stage("pause and its cgroup")
	err := errors.Join(g.Wait(), detach, unpin, faultpoint.Hit("sandbox.stop.unpinned"))
	op.Stage("files")
	if e := removeFiles(sb.Files); e != nil {
		err = errors.Join(err, fmt.Errorf("files: %w", e))
	}
	if err != nil {
		return fmt.Errorf("stop sandbox %s: %w", sb.ID, err)
	}
	return nil
}

// Remove stops the sandbox and forgets it. Its containers must have been removed. Idempotent.
func (s *Sandboxes) Remove(ctx context.Context, id string) error {
	sb, err := s.Get(id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	unlock, err := s.locks.Lock(ctx, sb.ID)
	if err != nil {
		return fmt.Errorf("sandbox %s is busy: %w", sb.ID, err)
	}
	defer unlock()
	if sb, err = s.stop(ctx, sb.ID); err != nil {
		if errdefs.IsNotFound(err) {
			return nil
		}
		return err
	}
	return s.forget(ctx, sb)
}

// locate returns the picture of a sandbox whose record can't be read with the cgroup that its pause is in, if there is one.
func (s *Sandboxes) locate(sb *Sandbox) (*Sandbox, error) {
	paths, err := s.cfg.Cgroups.List()
	if err != nil {
		return nil, fmt.Errorf("stop sandbox %s: %w", sb.ID, err)
	}
	found := *sb
	for _, p := range paths {
		if cgroupdriver.ID(p) == sb.ID {
			found.CgroupPath = p
		}
	}
	return &found, nil
}

// discard takes down a sandbox that was not finished, with its record. What can't be taken down is listed from then on,
// so that it can be stopped and removed; its record stays as it is, so the next start tries again, too.
func (s *Sandboxes) discard(ctx context.Context, sb *Sandbox) error {
	err := s.release(ctx, sb)
	if err == nil {
		err = s.forget(ctx, sb)
	}
	if err == nil {
		return nil
	}
	unlock, lerr := s.edits.Lock(context.WithoutCancel(ctx), sb.ID)
	if lerr != nil {
		return errors.Join(err, lerr)
	}
	defer unlock()
	left := *sb
	left.State, left.Leftover = NotReady, true
	s.set(&left)
	return err
}

// forget deletes the record; a late change can't bring it back.
func (s *Sandboxes) forget(ctx context.Context, sb *Sandbox) error {
	unlock, err := s.edits.Lock(ctx, sb.ID)
	if err != nil {
		return err
	}
	defer unlock()
	operation.FromContext(ctx).Stage("forget")
	if err := faultpoint.Hit("sandbox.remove.forget"); err != nil {
		return err
	}
	if err := s.records.Delete(sb.ID); err != nil {
		return fmt.Errorf("record of sandbox %s: %w", sb.ID, err)
	}
	s.drop(sb)
	return nil
}

// Retire marks a sandbox as not ready and as stopping, so that no container can be created in it any more, and touches nothing
// else. It goes before the pod's containers are stopped. Idempotent; an unknown id is no error.
func (s *Sandboxes) Retire(id string) error {
	sb, err := s.Get(id)
	if errdefs.IsNotFound(err) || err == nil && (sb.Stopping || sb.Broken != "") {
		return nil
	}
	if err != nil {
		return err
	}
	if _, err = s.change(sb.ID, retire); errdefs.IsNotFound(err) {
		return nil // removed meanwhile
	}
	return err
}

// retire is the first change of a sandbox that goes down: whatever happens next, nobody takes it for ready again.
func retire(sb *Sandbox) { sb.State, sb.Stopping = NotReady, true }
