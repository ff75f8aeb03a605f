package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/test/testnode"
)

// phase measures one thing of a running runtime.
type phase struct {
	name  string
	every bool // in every pass, not only in the first
	run   func(ctx context.Context, d *daemon, s size, r *result) error
}

// phaseTimeout is for a runtime that hangs.
const phaseTimeout = 10 * time.Minute

var phases = []phase{
	{"latency", true, latency},
	{"limit", true, limited},
	{"parallel", true, parallelism},
	{"grow", false, grow},
	{"lists", false, listing},
	{"idle", false, idling},
	{"probes", false, probing},
	{"logs", false, logging},
	{"restart", false, restarting},
	{"syscalls", false, syscalls},
	{"spans", true, spans},
	{"systemd", true, systemdWork},
	{"profile", false, profiling},
}

func measure(ctx context.Context, o options) (*results, error) {
	list, err := chosen(o)
	if err != nil {
		return nil, err
	}
	// Where the peers, whatever their configuration says, make directories.
	for _, dir := range []string{"/etc", "/opt", "/var/lib", "/var/log"} {
		if err := shield(dir); err != nil {
			return nil, err
		}
	}
	s, err := serve(o)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	r := &results{Time: time.Now(), Command: o.command, Quick: o.quick, Size: o.size, Machine: machine(o.dir)}
	r.Load[0] = load()
	var daemons []*daemon
	for i, t := range list {
		d, err := newDaemon(o, t, i)
		if err != nil {
			return nil, err
		}
		daemons = append(daemons, d)
		x := r.target(t.name)
		x.Version, x.Network, x.Sync = t.version(o), t.network, t.sync
	}
	for pass := range o.size.Passes {
		if slices.Contains(o.phases, "floor") {
			if err := r.measureFloor(ctx, o); err != nil {
				return nil, err
			}
		}
		for i := range daemons {
			d := daemons[(i+pass)%len(daemons)]
			if err := turn(ctx, o, d, pass, r.target(d.name)); err != nil {
				fmt.Fprintln(os.Stderr, err)
			}
			if ctx.Err() != nil {
				break
			}
		}
	}
	r.Load[1], r.Took = load(), time.Since(r.Time).Round(time.Second).Seconds()
	var errs []error
	for _, d := range daemons {
		errs = append(errs, d.group.remove())
	}
	errs = append(errs, (&group{path: parent()}).remove())
	for _, t := range r.Targets {
		for _, e := range t.Errors {
			errs = append(errs, fmt.Errorf("%s: %s", t.Target, e))
		}
	}
	return r, errors.Join(errs...)
}

// turn is one runtime's turn in a pass: it is started, measured, stopped. What fails is noted in r.
func turn(ctx context.Context, o options, d *daemon, pass int, r *result) error {
	begin := time.Now()
	fmt.Fprintf(os.Stderr, "pass %d: %s (load %s) ", pass+1, d.name, load())
	note := func(what string, err error) {
		if err != nil && ctx.Err() == nil {
			r.Errors = append(r.Errors, fmt.Sprintf("pass %d: %s: %v", pass+1, what, err))
			fmt.Fprintf(os.Stderr, "%s: %s: %v\n", d.name, what, err)
		}
	}
	show, err := hideUnified(d.target)
	defer show()
	if err == nil {
		_, err = d.start(ctx)
	}
	if err == nil {
		err = d.warm(ctx)
	}
	note("start", err)
	for _, p := range phases {
		if err != nil || ctx.Err() != nil || pass > 0 && !p.every || !slices.Contains(o.phases, p.name) {
			continue
		}
		fmt.Fprintf(os.Stderr, "%s ", p.name)
		pctx, cancel := context.WithTimeout(ctx, phaseTimeout)
		note(p.name, p.run(pctx, d, o.size, r))
		cancel()
		if cerr := d.clean(ctx); cerr != nil {
			note(p.name, cerr)
			break
		}
	}
	note("stop", d.stop(ctx))
	fmt.Fprintf(os.Stderr, "%.0f s\n", time.Since(begin).Seconds())
	return ctx.Err()
}

// hideUnified unmounts the cgroup2 of a hybrid layout for crun, which refuses it before 1.9, until show is called.
func hideUnified(t target) (show func(), err error) {
	const dir = "/sys/fs/cgroup/unified"
	var st unix.Statfs_t
	if t.handler != "crun" || unix.Statfs(dir, &st) != nil || st.Type != unix.CGROUP2_SUPER_MAGIC {
		return func() {}, nil
	}
	return func() {
		_ = unix.Unmount(dir, unix.MNT_DETACH)
		if err := unix.Mount("cgroup2", dir, "cgroup2", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			fmt.Fprintln(os.Stderr, "cribench: show", dir, "again:", err)
		}
	}, testnode.HideUnified()
}

// shield mounts an overlay on dir in which changes go to a tmpfs, and so away with this mount namespace.
func shield(dir string) error {
	layer := filepath.Join("/run/cribench/shield", dir)
	upper, work := filepath.Join(layer, "upper"), filepath.Join(layer, "work")
	for _, d := range []string{upper, work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	if err := unix.Mount("overlay", dir, "overlay", 0, "lowerdir="+dir+",upperdir="+upper+",workdir="+work); err != nil {
		return fmt.Errorf("overlay on %s: %w", dir, err)
	}
	return nil
}
