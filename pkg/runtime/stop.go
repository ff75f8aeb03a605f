package runtime

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

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
	default: // created: there is no program that could take a signal; broken or unknown: it is not known which
		grace = 0
	}
	if ctr.Broken != "" {
		return c.cfg.Monitor.Delete(ctx, ctr.ID)
	}
	ended := c.ended(ctr.ID)
	if grace > 0 {
		err := c.cfg.Monitor.Signal(ctx, ctr.ID, ctr.StopSignal)
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
	if err := c.cfg.Monitor.Kill(ctx, ctr.ID); err != nil && !gone(err) {
		return fmt.Errorf("kill container %s: %w", ctr.ID, err)
	}
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

// StopSandbox kills all containers of a sandbox, at once and without grace.
func (c *Containers) StopSandbox(ctx context.Context, sandboxID string) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, ctr := range c.OfSandbox(sandboxID) {
		if ctr.State == Creating || ctr.State == Exited {
			continue
		}
		g.Go(func() error { return c.Stop(ctx, ctr.ID, 0) })
	}
	return g.Wait()
}
