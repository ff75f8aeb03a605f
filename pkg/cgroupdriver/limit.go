package cgroupdriver

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

// setting is one write to one file. Settings are applied in order; undone in the reverse one.
type setting struct{ dir, file, value string }

// plan turns resources into settings for v1 or v2. With update it looks at the current values to find an order in
// which no step breaks the kernel's rules between values.
func (d *cgroupfs) plan(cg *engine.Cgroup, r *specs.LinuxResources, update bool) ([]setting, error) {
	if r == nil {
		return nil, nil
	}
	for name, given := range map[string]bool{
		"network": r.Network != nil && (r.Network.ClassID != nil || len(r.Network.Priorities) > 0),
		"rdma":    len(r.Rdma) > 0,
		//lint:ignore SA1019 refused by name
		"memory.kernel": r.Memory != nil && (r.Memory.Kernel != nil && *r.Memory.Kernel != 0 ||
			r.Memory.KernelTCP != nil && *r.Memory.KernelTCP != 0),
		"blockIO.leafWeight": r.BlockIO != nil && r.BlockIO.LeafWeight != nil,
	} {
		if given {
			return nil, fmt.Errorf("resources.%s: %w", name, errdefs.ErrNotImplemented)
		}
	}
	if d.v2 {
		return d.planV2(cg.Unified, r, update)
	}
	return d.planV1(cg, r, update)
}

// limit applies everything to a new, empty cgroup.
func (d *cgroupfs) limit(cg *engine.Cgroup, r *specs.LinuxResources) error {
	settings, err := d.plan(cg, r, false)
	if err != nil {
		return err
	}
	for _, s := range settings {
		if err := write(s.dir, s.file, s.value); err != nil {
			return err
		}
	}
	if r == nil || len(r.Devices) == 0 {
		return nil
	}
	if d.v2 {
		return devicesV2(cg.Unified, r.Devices)
	}
	dir, err := d.controller(cg, "devices")
	if err != nil {
		return err
	}
	return devicesV1(dir, r.Devices)
}

func (d *cgroupfs) Update(ctx context.Context, path string, r *specs.LinuxResources) error {
	_, _, err := d.apply(ctx, path, r)
	return err
}

// apply writes the settings of r, all or none, and returns what they were before.
func (d *cgroupfs) apply(ctx context.Context, path string, r *specs.LinuxResources) (settings, undo []setting, err error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	cg, err := d.Load(path)
	if err != nil {
		return nil, nil, err
	}
	fail := func(err error) ([]setting, []setting, error) {
		return nil, nil, fmt.Errorf("update cgroup %s: %w", path, err)
	}
	if r != nil && len(r.Devices) > 0 {
		return fail(fmt.Errorf("device rules of a running container: %w", errdefs.ErrNotImplemented))
	}
	if settings, err = d.plan(cg, r, true); err != nil {
		return fail(err)
	}
	for _, s := range settings {
		old, ok := previous(s)
		err := write(s.dir, s.file, s.value)
		if err != nil {
			return fail(errors.Join(err, revert(undo)))
		}
		if ok {
			undo = append(undo, old)
		}
	}
	return settings, undo, nil
}

// revert writes the values back that settings had before.
func revert(undo []setting) error {
	var failed error
	for _, u := range slices.Backward(undo) {
		if err := write(u.dir, u.file, u.value); err != nil {
			failed = errors.Join(failed, fmt.Errorf("roll back: %w", err))
		}
	}
	return failed
}

// unifiedKey: a controller's own file. cgroup.* are not limits: cgroup.procs would move processes, cgroup.kill end them.
var unifiedKey = regexp.MustCompile(`^(cpu|cpuset|memory|io|pids|hugetlb|rdma|misc|dmem)\.[A-Za-z0-9_.-]*[A-Za-z0-9]$`)

// limit64 formats an OCI limit: -1 is unlimited.
func limit64(n int64) string {
	if n < 0 {
		return "max"
	}
	return fmt.Sprint(n)
}

// given tells whether an optional field is set: nil and zero both mean "leave".
func given[T comparable](p *T) bool {
	var zero T
	return p != nil && *p != zero
}

func emptyResources(r *specs.LinuxResources) bool {
	return len(r.Devices) == 0 && r.Memory == nil && r.CPU == nil && r.Pids == nil && r.BlockIO == nil && len(r.HugepageLimits) == 0 &&
		r.Network == nil && len(r.Rdma) == 0 && len(r.Unified) == 0
}
