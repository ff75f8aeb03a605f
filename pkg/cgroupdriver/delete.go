package cgroupdriver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"time"
)

// transientDir is where systemd keeps the unit files that it made for callers (systemd.unit(5)): one for each such unit, for as
// long as it knows the unit. A variable for a test.
var transientDir = "/run/systemd/transient"

// letGo is how long systemd has to see that a scope is empty before it is told to stop it.
const letGo = 500 * time.Millisecond

// Delete kills what is left, and then, with a cgroup2 hierarchy, which tells systemd of the last process's end, leaves it to
// systemd to remove the scope, for which it needs no job: one to stop the scope costs it as much as the scope's start.
// Where systemd does not in time, or on v1 alone, where nobody tells it, it is asked to. The directories that systemd knows
// nothing of are removed at last. They must not go before: systemd that is told of an end, and finds no directory, takes the
// scope to be running for ever.
//
// Each step has a deadline of its own: systemd, which may be executing itself anew on a busy machine, is waited for as long as
// in Create.
func (d *systemd) Delete(ctx context.Context, p string) error {
	p, err := clean(p)
	if err != nil {
		return err
	}
	d.places.end(p)
	_, scope, ok := scopeOf(p)
	if !ok {
		return d.cgroupfs.Delete(ctx, p)
	}
	if pids, err := d.processes(p); err != nil || len(pids) > 0 {
		if err := d.cgroupfs.Kill(ctx, p); err != nil {
			return err
		}
	}
	if !d.collected(ctx, p) {
		if err := d.stop(ctx, scope); err != nil {
			err = fmt.Errorf("delete scope %s: %w", p, err)
			return errors.Join(err, d.cgroupfs.Delete(ctx, p))
		}
	}
	return d.cgroupfs.Delete(ctx, p)
}

// collected waits until systemd has removed an empty scope. It is true as well for one that systemd does not know.
func (d *systemd) collected(ctx context.Context, p string) bool {
	if d.unified == "" {
		return false
	}
	dir, deadline := d.dirs(p).Unified, time.Now().Add(letGo)
	for pause := 50 * time.Microsecond; ; pause = min(2*pause, 5*time.Millisecond) {
		if !exists(dir, "cgroup.procs") || unknown(path.Base(p)) {
			return true
		}
		if time.Now().After(deadline) {
			return false
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(pause):
		}
	}
}

// unknown tells whether systemd does not know a scope, as far as that can be told without asking it.
func unknown(scope string) bool {
	if _, err := os.Lstat(path.Join(transientDir, scope)); !errors.Is(err, os.ErrNotExist) {
		return false
	}
	_, err := os.Lstat(transientDir)
	return err == nil
}
