package cgroupdriver

import (
	"bytes"
	"context"
	"path/filepath"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

// BeginIdle saves what a cgroup costs the kernel in hierarchies in which nobody would ever look at it: 0.04 ms in that of memory, 0.01 in
// each other, half of that when it is removed, and what the kernel has to do for it afterwards.
func (d *cgroupfs) BeginIdle(ctx context.Context, path string, res *specs.LinuxResources) (*engine.Cgroup, func(context.Context) error, error) {
	return d.begin(ctx, path, res, true)
}

// BeginIdle: a scope is one in all hierarchies.
func (d *systemd) BeginIdle(ctx context.Context, p string, res *specs.LinuxResources) (*engine.Cgroup, func(context.Context) error, error) {
	return d.Begin(ctx, p, res)
}

// share makes cg join the cgroup above where nothing speaks against it, and returns what is left of res to be set. Own stay:
//
//   - the hierarchy with the marks, by which List finds the cgroup, and that by which it is killed: the unified one, else the
//     freezer's;
//   - that of each controller which res has something for, devices above all. A container that shares its processes with the pod
//     and may trace others can make pause do what it likes, and hand it a device node that it may make (CAP_MKNOD, which
//     containers have) and not open: pause must not be able to either;
//   - where the cgroup above is not there, or was made by this driver, which takes it away with the last child, or has no CPUs or
//     memory nodes, so that nothing can join it (cpuset(7)).
func (d *cgroupfs) share(cg *engine.Cgroup, path string, res *specs.LinuxResources) *specs.LinuxResources {
	above := filepath.Dir(path)
	// A cri-monitor from before Cgroup.Shared, which went on as it was when cri-server was replaced, kills by the unified hierarchy or
	// by the freezer's, and where there is neither by any one that it was told of.
	if above == "/" || d.unified == "" && d.hierarchy["freezer"] == "" {
		return res
	}
	own := map[string]bool{}
	for _, c := range limited(res) {
		own[d.hierarchy[c]] = true
	}
	if d.unified == "" {
		own[d.hierarchy["freezer"]] = true
	}
	for name, mount := range d.v1 {
		dir := mount + above
		if own[name] || mount == d.primary() || !d.others(dir) || name == d.hierarchy["cpuset"] && !hasCPUs(dir) {
			continue
		}
		cg.V1[name] = dir
		cg.Shared = append(cg.Shared, name)
	}
	slices.Sort(cg.Shared)
	if res == nil || res.CPU == nil || !slices.Contains(cg.Shared, d.hierarchy["cpu"]) {
		return res
	}
	left, cpu := *res, *res.CPU
	cpu.Shares, left.CPU = nil, &cpu
	return &left
}

// limited are the controllers that res says something to that can't be left out.
func limited(res *specs.LinuxResources) (controllers []string) {
	if res == nil {
		return nil
	}
	add := func(controller string, wanted bool) {
		if wanted {
			controllers = append(controllers, controller)
		}
	}
	add("devices", len(res.Devices) > 0)
	add("memory", res.Memory != nil)
	add("pids", res.Pids != nil)
	add("blkio", res.BlockIO != nil)
	add("hugetlb", len(res.HugepageLimits) > 0)
	if c := res.CPU; c != nil {
		add("cpuset", c.Cpus != "" || c.Mems != "")
		rest := *c
		rest.Shares, rest.Cpus, rest.Mems = nil, "", ""
		add("cpu", rest != specs.LinuxCPU{})
	}
	return controllers
}

// others tells whether dir is there and was not made by a driver of this kind.
func (d *cgroupfs) others(dir string) bool {
	buf := make([]byte, 256)
	n, err := unix.Listxattr(dir, buf)
	return err == nil && !bytes.Contains(buf[:n], []byte("."+parentMark+"\x00")) && !bytes.Contains(buf[:n], []byte("."+containerMark+"\x00"))
}

// hasCPUs tells whether a process can join a directory of the cpuset hierarchy.
func hasCPUs(dir string) bool {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		if set, err := read(dir, file); err != nil || set == "" {
			return false
		}
	}
	return true
}
