package runtime

import (
	"context"
	"fmt"
	"path/filepath"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/pkg/operation"
	"github.com/seed-9a14075a/cri-server/pkg/records"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/monitor"
)

// Open prepares the set. Recover must follow before anything else is asked of it.
func Open(cfg Config) (*Containers, error) {
	store, err := records.Open[record](cfg.RecordsDir, recordVersion)
	if err != nil {
		return nil, fmt.Errorf("container records: %w", err)
	}
	f, err := newFilters(filepath.Join(cfg.StateDir, "seccomp"))
	if err != nil {
		return nil, fmt.Errorf("seccomp filters: %w", err)
	}
	c := &Containers{
		cfg: cfg, records: store, ops: operation.NewGroup(operation.Options{Log: cfg.Log}), filters: f,
		byID: map[string]*Container{}, byKey: map[string]string{}, exited: map[string]chan struct{}{},
		died: map[string]bool{}, released: map[string]bool{},
	}
	c.layers = layers{measure: cfg.Images.SnapshotUsage, tasks: &c.reaping}
	return c, nil
}

// Recover brings records and kernel together, given what cri-monitor knows: a container that was half made is taken
// down, one that ended meanwhile gets its exit code, one that the monitor does not know has ended with the machine or
// unseen. A record that can't be read is listed as unknown, and what it may stand for is left alone. It returns an
// error only if the records can't be read at all.
func (c *Containers) Recover(ctx context.Context, states map[string]monitor.State) error {
	entries, err := c.records.Load()
	if err != nil {
		return fmt.Errorf("container records: %w", err)
	}
	for _, e := range entries {
		ctr, err := &Container{}, e.Err
		if err == nil {
			ctr, err = fromRecord(e.ID, &e.Value)
		}
		if err != nil {
			c.cfg.Log.Error("container record can't be read; the container is listed as unknown", "container", e.ID, "error", err)
			c.set(&Container{ID: e.ID, State: Unknown, Broken: err.Error(), Config: &runtimeapi.ContainerConfig{}, SandboxID: e.Value.SandboxID})
			continue
		}
		c.set(ctr)
		if err := c.settle(ctx, ctr, e.SameBoot, states); err != nil {
			c.cfg.Log.Error("recover container", "container", ctr.ID, "error", err)
		}
	}
	return nil
}

// settle decides what a container's record means now.
func (c *Containers) settle(ctx context.Context, ctr *Container, sameBoot bool, states map[string]monitor.State) error {
	st, known := states[ctr.ID]
	known = known && sameBoot
	log := c.cfg.Log.With("container", ctr.ID)
	switch {
	case ctr.State == Creating:
		log.Info("taking down a container that was not finished")
		return c.takeBack(ctx, ctr)
	case ctr.State == Exited:
		if !sameBoot {
			return nil
		}
		return c.release(ctx, ctr)
	case known && st.Status == monitor.Stopped:
		log.Info("container ended while the server was away", "exit_code", st.ExitCode)
		_, err := c.finish(ctr.ID, func(n *Container) { apply(n, st) })
		return err
	case known && st.Status == monitor.Running && ctr.State == Created: // killed between start and its record
		c.Started(st)
		return nil
	case known:
		return nil
	}
	log.Warn("container is gone", "same_boot", sameBoot)
	message := "the container ended unseen"
	if !sameBoot {
		message = "the machine was restarted"
	}
	return c.lost(ctr.ID, message)
}

// Wait waits for running operations and for the cleaning up after exits: for a graceful stop.
func (c *Containers) Wait(ctx context.Context) error {
	err := c.ops.Wait(ctx)
	done := make(chan struct{})
	go func() { c.reaping.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
	}
	return err
}

// Operations are those that run now.
func (c *Containers) Operations() []operation.Timeline { return c.ops.Running() }
