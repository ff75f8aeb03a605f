package cgroupdriver

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/faultpoint"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

// Begin makes no more than the directory that a process must be forked into, where it joins the other hierarchies later.
func (d *cgroupfs) Begin(ctx context.Context, path string, res *specs.LinuxResources) (*engine.Cgroup, func(context.Context) error, error) {
	return d.begin(ctx, path, res, false)
}

func (d *cgroupfs) begin(ctx context.Context, path string, res *specs.LinuxResources, idle bool) (_ *engine.Cgroup, finish func(context.Context) error, err error) {
	if path, err = clean(path); err != nil {
		return nil, nil, err
	}
	named := func(err error) error {
		if err != nil {
			err = fmt.Errorf("create cgroup %s: %w", path, err)
		}
		return err
	}
	defer func() { err = named(err) }()
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	if d.marked(filepath.Join(d.primary(), filepath.Dir(path)), containerMark) {
		cg, err := d.createSession(path, res)
		return cg, nil, err
	}
	primary := filepath.Join(d.primary(), path)
	if _, err := os.Lstat(primary); err == nil && !d.marked(primary, containerMark) {
		if pids, err := procs(primary); err != nil || len(pids) > 0 {
			return nil, nil, fmt.Errorf("it exists already and has processes %v that cri-server did not put there: %w", pids, errdefs.ErrAlreadyExists)
		}
	}
	f := &filling{cgroupfs: d, path: path, cg: d.dirs(path), res: res}
	if idle && !d.v2 {
		f.res = d.share(f.cg, path, res)
	}
	if !d.v2 && d.unified != "" {
		if err := f.mkdirs(f.cg.Unified, &f.made); err != nil {
			return nil, nil, err
		}
		d.mark(primary, containerMark)
	}
	return f.cg, func(ctx context.Context) error { return named(f.finish(ctx)) }, nil
}

// filling is a cgroup on its way.
type filling struct {
	*cgroupfs
	path string
	cg   *engine.Cgroup
	res  *specs.LinuxResources
	made []string
}

// fill makes what is missing of a cgroup, marks it, and limits it.
func (d *cgroupfs) fill(path string, res *specs.LinuxResources) (*engine.Cgroup, error) {
	f := &filling{cgroupfs: d, path: path, cg: d.dirs(path), res: res}
	return f.cg, f.finish(context.Background())
}

func (f *filling) finish(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			for _, dir := range slices.Backward(f.made) {
				_ = unix.Rmdir(dir) // what others use by now stays
			}
		}
	}()
	if err := ctx.Err(); err != nil {
		return err
	}
	own := f.cg.Own()
	for _, dir := range all(own) {
		if err := f.mkdirs(dir, &f.made); err != nil {
			return err
		}
	}
	if err := faultpoint.Hit("cgroup.create.made"); err != nil {
		return err
	}
	if f.v2 {
		f.enable(filepath.Dir(f.path)) // now that it has a child, nobody's Delete takes the parent away
	}
	f.mark(filepath.Join(f.primary(), f.path), containerMark)
	if err := f.limit(own, f.res); err != nil {
		return err
	}
	return faultpoint.Hit("cgroup.create.limited")
}

// Begin leaves to finish what takes systemd its time, and makes the directory that a process must be forked into: systemd takes it
// over as it is, with the process, and puts the placeholder beside it.
func (d *systemd) Begin(ctx context.Context, p string, res *specs.LinuxResources) (*engine.Cgroup, func(context.Context) error, error) {
	p, err := clean(p)
	if err != nil {
		return nil, nil, err
	}
	if _, _, ok := scopeOf(p); !ok {
		cg, err := d.Create(ctx, p, res)
		return cg, nil, err
	}
	cg := d.dirs(p)
	if !d.v2 && cg.Unified != "" {
		if err := unix.Mkdir(cg.Unified, 0o755); err != nil { // one that is there already, or a slice that is not
			cg, err := d.Create(ctx, p, res)
			return cg, nil, err
		}
		d.mark(filepath.Join(d.primary(), p), containerMark)
	}
	return cg, func(ctx context.Context) error {
		_, err := d.Create(ctx, p, res)
		return err
	}, nil
}
