package cgroupdriver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	sd "github.com/coreos/go-systemd/v22/dbus"
)

// aux is StartTransientUnit's list of further units, which is always empty.
type aux struct {
	Name       string
	Properties []sd.Property
}

// start makes the scope around a process; it is false if our scope was there already, and the process has joined it.
func (d *systemd) start(ctx context.Context, p string, pid int, props []sd.Property) (bool, error) {
	scope := path.Base(p)
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	props = append(props, newPids(pid))
	var last error
	for range 4 {
		result, err := d.bus.job(ctx, scope, "StartTransientUnit", scope, "replace", props, []aux{})
		switch {
		case err == nil && result == "done":
			return true, nil
		case err == nil:
			_ = d.reset(ctx, scope)
			return false, fmt.Errorf("systemd says %s: %w", result, errdefs.ErrUnknown)
		case errors.Is(err, errLost):
			last = err
			continue
		case errorName(err) != sdName+".UnitExists":
			return false, kind(err)
		}
		last = err
		// Ours from a request whose answer was lost, ours from before, somebody else's, or one that comes or goes.
		state, err := d.bus.property(ctx, scope, "ActiveState")
		switch {
		case err != nil:
			return false, kind(err)
		case member(pid, p): // looked at after the state: a scope is active when its processes are in it
			return true, d.active(ctx, scope)
		case state == "active":
			return false, d.join(p, pid)
		}
		if err := errors.Join(d.reset(ctx, scope), d.stop(ctx, scope)); err != nil {
			return false, err
		}
	}
	return false, last
}

func newPids(pid int) sd.Property {
	p := &properties{}
	p.add("PIDs", []uint32{uint32(pid)})
	return p.list[0]
}

// join puts a process into an existing scope, if it is one that this driver made.
func (d *systemd) join(p string, pid int) error {
	if !d.marked(path.Join(d.primary(), p), containerMark) {
		return fmt.Errorf("a scope of that name is there, and cri-server did not make it: %w", errdefs.ErrAlreadyExists)
	}
	for _, dir := range all(d.dirs(p)) {
		if err := write(dir, "cgroup.procs", strconv.Itoa(pid)); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	return nil
}

// member tells whether a process is in the cgroup, by any hierarchy (proc_pid_cgroup(5)).
func member(pid int, p string) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 && f[2] == p {
			return true
		}
	}
	return false
}

// active waits for a scope whose job nobody tells about.
func (d *systemd) active(ctx context.Context, scope string) error {
	return poll(ctx, func() (bool, error) {
		state, err := d.bus.property(ctx, scope, "ActiveState")
		if err == nil && (state == "failed" || state == "inactive") {
			err = fmt.Errorf("the scope is %s: %w", state, errdefs.ErrUnknown)
		}
		return state == "active", kind(err)
	})
}

// stop has an empty scope removed. systemd mostly has done so by itself by now.
func (d *systemd) stop(ctx context.Context, scope string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	for {
		result, err := d.bus.job(ctx, scope, "StopUnit", scope, "replace")
		switch {
		case errors.Is(err, errLost):
			continue // the next try dials, until the deadline
		case errorName(err) == sdName+".NoSuchUnit":
			return nil
		case err != nil:
			return kind(err)
		case result != "done":
			return d.reset(ctx, scope)
		}
		return nil
	}
}

func (d *systemd) reset(ctx context.Context, scope string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err := d.bus.call(ctx, sdPath, sdManager+".ResetFailedUnit", nil, scope)
	if errorName(err) == sdName+".NoSuchUnit" {
		return nil
	}
	return kind(err)
}

// kind gives systemd's errors the kinds that callers know.
func kind(err error) error {
	switch errorName(err) {
	case "":
		return err
	case sdName + ".NoSuchUnit":
		return fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
	case "org.freedesktop.DBus.Error.InvalidArgs", "org.freedesktop.DBus.Error.PropertyReadOnly":
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	case "org.freedesktop.DBus.Error.AccessDenied":
		return fmt.Errorf("%w: %w", err, errdefs.ErrPermissionDenied)
	}
	return fmt.Errorf("%w: %w", err, errdefs.ErrUnknown)
}
