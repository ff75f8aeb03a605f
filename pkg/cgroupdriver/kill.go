package cgroupdriver

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/faultpoint"
)

// killTimeout bounds Kill and Delete for callers without a deadline: a process in an uninterruptible wait ends when the
// device answers, if ever. A variable for a test.
var killTimeout = 10 * time.Second

// freezeTimeout: v1's freezer may never get there for the same reason.
const freezeTimeout = 2 * time.Second

// Kill returns when no process is left, or with context.DeadlineExceeded naming those that are.
func (d *cgroupfs) Kill(ctx context.Context, path string) error {
	path, err := clean(path)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	cg := d.dirs(path)
	viaFile := false
	if cg.Unified != "" {
		err := write(cg.Unified, "cgroup.kill", "1") // Linux 5.14; whole subtree, nothing forks away
		viaFile = err == nil
	}
	if !viaFile {
		_ = d.freeze(ctx, path, true) // if it can't be frozen, killing in a loop catches up with most
	}
	// A process that was moved into v1 hierarchies only (by another runtime) is not in the unified one.
	var left []int
	err = poll(ctx, func() (bool, error) {
		if left, err = d.processes(path); err != nil || len(left) == 0 {
			return true, err
		}
		if !viaFile || len(d.v1) > 0 {
			d.signal(path, left)
		}
		// A frozen process dies when it is thawed; a killed cgroup may have been frozen by its owner too.
		return false, d.thawV1(path)
	})
	if err != nil && len(left) > 0 {
		return fmt.Errorf("kill cgroup %s: processes %v are still there: %w", path, left, err)
	}
	if err != nil {
		return fmt.Errorf("kill cgroup %s: %w", path, err)
	}
	return d.thawV1(path)
}

// Pids implements Driver.
func (d *cgroupfs) Pids(path string) ([]int, error) {
	path, err := clean(path)
	if err != nil {
		return nil, err
	}
	return d.processes(path)
}

// processes lists every process in and below path, in any hierarchy.
func (d *cgroupfs) processes(path string) ([]int, error) {
	seen := map[int]bool{}
	for _, root := range all(d.dirs(path)) {
		dirs, err := tree(root)
		if err != nil {
			return nil, err
		}
		for _, dir := range dirs {
			pids, err := procs(dir)
			if err != nil && !errors.Is(err, unix.EOPNOTSUPP) { // a threaded v2 cgroup: its root has them
				return nil, err
			}
			for _, pid := range pids {
				if pid > 0 { // 0: in a pid namespace that we don't see into
					seen[pid] = true
				}
			}
		}
	}
	return slices.Sorted(maps.Keys(seen)), nil
}

// signal kills by pidfd: a pid may have been given to another process since the list was read, so it is sent only if
// the process is still in the list after the pidfd was opened.
func (d *cgroupfs) signal(path string, pids []int) {
	fds := map[int]int{}
	for _, pid := range pids {
		if fd, err := unix.PidfdOpen(pid, 0); err == nil {
			fds[pid] = fd
		}
		if len(fds) == 256 {
			break // the next turn takes the rest
		}
	}
	still, err := d.processes(path)
	for pid, fd := range fds {
		if _, found := slices.BinarySearch(still, pid); found && err == nil {
			_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		}
		_ = unix.Close(fd)
	}
}

func (d *cgroupfs) Freeze(ctx context.Context, path string) error {
	path, err := clean(path)
	if err != nil {
		return err
	}
	if err := d.freeze(ctx, path, true); err != nil {
		_ = d.freeze(context.WithoutCancel(ctx), path, false)
		return fmt.Errorf("freeze cgroup %s: %w", path, err)
	}
	return nil
}

func (d *cgroupfs) Thaw(ctx context.Context, path string) error {
	path, err := clean(path)
	if err != nil {
		return err
	}
	if err := d.freeze(ctx, path, false); err != nil {
		return fmt.Errorf("thaw cgroup %s: %w", path, err)
	}
	return nil
}

// freeze uses v1's freezer where it is mounted, else cgroup.freeze, which hybrid layouts have too.
func (d *cgroupfs) freeze(ctx context.Context, path string, on bool) error {
	ctx, cancel := context.WithTimeout(ctx, freezeTimeout)
	defer cancel()
	if h, ok := d.hierarchy["freezer"]; ok {
		dir, state := filepath.Join(d.v1[h], path), "THAWED"
		if on {
			state = "FROZEN"
		}
		return poll(ctx, func() (bool, error) {
			// Written again each time: a process that forked meanwhile may have got away.
			if err := write(dir, "freezer.state", state); err != nil {
				return false, err
			}
			now, err := read(dir, "freezer.state")
			return now == state, err
		})
	}
	if d.unified == "" {
		return fmt.Errorf("no freezer is mounted: %w", errdefs.ErrNotImplemented)
	}
	dir, value, want := filepath.Join(d.unified, path), "0", uint64(0)
	if on {
		value, want = "1", 1
	}
	if err := write(dir, "cgroup.freeze", value); err != nil {
		return err
	}
	return poll(ctx, func() (bool, error) {
		events, err := keyed(dir, "cgroup.events")
		return events["frozen"] == want, err
	})
}

func (d *cgroupfs) thawV1(path string) error {
	h, ok := d.hierarchy["freezer"]
	if !ok {
		return nil
	}
	err := write(filepath.Join(d.v1[h], path), "freezer.state", "THAWED")
	if errors.Is(err, errdefs.ErrNotFound) || errors.Is(err, errdefs.ErrNotImplemented) {
		return nil // no such cgroup in this hierarchy
	}
	return err
}

func (d *cgroupfs) Delete(ctx context.Context, path string) error {
	path, err := clean(path)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, killTimeout)
	defer cancel()
	for _, root := range all(d.dirs(path)) {
		if err := errors.Join(faultpoint.Hit("cgroup.delete"), d.remove(ctx, path, root)); err != nil {
			return fmt.Errorf("delete cgroup %s: %w", path, err)
		}
		for dir := filepath.Dir(root); d.marked(dir, parentMark); dir = filepath.Dir(dir) {
			if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) {
				break // another child is there
			}
		}
	}
	return nil
}

// remove takes one hierarchy's directory down. Straight away first: nearly always it is empty. EBUSY lasts for a
// moment after the last process is gone; if it lasts, somebody is left.
func (d *cgroupfs) remove(ctx context.Context, path, root string) error {
	if err := unix.Rmdir(root); err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	killed := false
	return poll(ctx, func() (bool, error) {
		dirs, err := tree(root)
		if err != nil {
			return false, err
		}
		busy := false
		for _, dir := range dirs {
			err := unix.Rmdir(dir)
			if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.ENOTEMPTY) {
				busy = true
			} else if err != nil && !errors.Is(err, unix.ENOENT) {
				return false, &fs.PathError{Op: "rmdir", Path: dir, Err: err}
			}
		}
		if busy && !killed {
			killed = true
			return false, d.Kill(ctx, path)
		}
		return !busy, nil
	})
}
