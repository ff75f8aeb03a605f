package runtime

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/pkg/faultpoint"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/spec"
)

// killTimeout is how long a SIGKILL may take to end a container before Stop gives up on it: a process in
// uninterruptible sleep does not die.
const killTimeout = 30 * time.Second

// stopSignal is the CRI's, else the image's, else SIGTERM. A signal that does not exist is an ErrInvalidArgument.
func stopSignal(config *runtimeapi.ContainerConfig, image *imagestore.Image) (unix.Signal, error) {
	if s := config.GetStopSignal(); s != runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT {
		return spec.CRISignal(s)
	}
	if s := image.Config.Config.StopSignal; s != "" {
		sig, err := spec.ParseSignal(s)
		if err != nil {
			return 0, fmt.Errorf("stop signal of the image: %w", err)
		}
		return sig, nil
	}
	return unix.SIGTERM, nil
}

// Stop ends a container: its stop signal, after grace SIGKILL to all its processes. It returns when the container has
// ended. Several calls may run at once, each with its own grace; the shortest wins. Idempotent; an unknown id is no
// error, as the CRI wants it.
func (c *Containers) Stop(ctx context.Context, id string, grace time.Duration) error {
	ctr, err := c.Get(id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	switch ctr.State {
	case Exited:
		return nil
	case Running:
	default: // created: there is no program that could take a signal; unknown: it is not known which
		grace = 0
	}
	if ctr.State == Unknown {
		return c.release(ctx, ctr)
	}
	ended := c.ended(ctr.ID)
	if grace > 0 {
		err := faultpoint.Hit("container.stop.signal")
		if err != nil {
			return fmt.Errorf("stop container %s: %w", ctr.ID, err)
		}
		err = c.cfg.Monitor.Signal(ctx, ctr.ID, ctr.StopSignal)
		if errdefs.IsNotFound(err) {
			err = c.confirm(ctx, ctr.ID)
		}
		if err != nil && !gone(err) {
			return fmt.Errorf("stop container %s: %w", ctr.ID, err)
		}
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case <-ended:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("stop container %s: still running after its stop signal: %w", ctr.ID, ctx.Err())
		case <-timer.C:
		}
	}
	if err := faultpoint.Hit("container.stop.kill"); err != nil {
		return fmt.Errorf("kill container %s: %w", ctr.ID, err)
	}
	err = c.cfg.Monitor.Kill(ctx, ctr.ID)
	if errdefs.IsNotFound(err) {
		err = c.confirm(ctx, ctr.ID)
	}
	if err != nil && !gone(err) {
		return fmt.Errorf("kill container %s: %w", ctr.ID, err)
	}
	faultpoint.Pass("container.stop.killed")
	timer := time.NewTimer(killTimeout)
	defer timer.Stop()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("stop container %s: killed, not dead yet: %w", ctr.ID, ctx.Err())
	case <-timer.C:
		return fmt.Errorf("container %s is not dead %v after SIGKILL; a process may be in uninterruptible sleep: %w",
			ctr.ID, killTimeout, errdefs.ErrUnavailable)
	}
}

// gone tells whether an error of the monitor means that there is nothing left to be signalled.
func gone(err error) bool { return errdefs.IsNotFound(err) || errdefs.IsFailedPrecondition(err) }

// confirm finds out what it means that there was nothing to be signalled: the end of the container is under way to us, or
// cri-monitor has lost the container (it was killed and started anew), and nobody will ever tell of its end.
func (c *Containers) confirm(ctx context.Context, id string) error {
	if _, err := c.cfg.Monitor.State(ctx, id); !errdefs.IsNotFound(err) {
		return err
	}
	// It is forgotten only after its end was recorded; then this does nothing.
	return c.lost(id, "cri-monitor has lost the container")
}

// StopSandbox kills all containers of a sandbox, at once and without grace, and puts an end to those being created. The
// sandbox must not be ready any more.
func (c *Containers) StopSandbox(ctx context.Context, sandboxID string) error {
	var g errgroup.Group // without a common context: none is left alive because another could not be killed
	for _, ctr := range c.OfSandbox(sandboxID) {
		switch ctr.State {
		case Exited:
		case Creating:
			g.Go(func() error { return c.abort(ctx, ctr) })
		default:
			g.Go(func() error { return c.Stop(ctx, ctr.ID, 0) })
		}
	}
	return g.Wait()
}

// abort ends the creation of a container and waits until it is taken back; no longer than a kill may take, since a file
// system that does not answer can hold it.
func (c *Containers) abort(ctx context.Context, ctr *Container) error {
	short, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	err := c.ops.Abort(short, "create "+Key(ctr.SandboxID, ctr.Config.GetMetadata()), errStopped(ctr.SandboxID))
	if err != nil && ctx.Err() == nil && short.Err() != nil {
		return fmt.Errorf("the creation of container %s has not ended %v after it was told to; a file system that it needs may not answer: %w",
			ctr.ID, killTimeout, errdefs.ErrUnavailable)
	}
	return err
}

func errStopped(sandboxID string) error {
	return fmt.Errorf("sandbox %s was stopped meanwhile: %w", sandboxID, errdefs.ErrFailedPrecondition)
}
