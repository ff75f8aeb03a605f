package cgroupdriver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	sd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/opencontainers/cgroups"
	sdcgroups "github.com/opencontainers/cgroups/systemd"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

// systemd is the driver that asks systemd for a scope per container, in the slice that kubelet made for the pod. The
// scope is delegated: below it, and in every file that systemd has no property for, it is as the cgroupfs driver's.
type systemd struct {
	*cgroupfs
	bus     *bus
	slice   string // of pods without a parent
	version int
	places  placeholders
}

const scopePrefix = "cri"

func newSystemd(cfg Config, l *layout) (*systemd, error) {
	if cfg.DefaultParent == "" {
		cfg.DefaultParent = "system.slice"
	}
	if !systemdBooted() {
		return nil, fmt.Errorf("cgroup driver systemd: systemd is not this machine's init (no /run/systemd/system); set cgroup_driver = "+
			"\"cgroupfs\" here and cgroupDriver: cgroupfs in the kubelet's configuration: %w", errdefs.ErrFailedPrecondition)
	}
	slice, err := slicePath(cfg.DefaultParent)
	if err != nil {
		return nil, fmt.Errorf("default_cgroup_parent: %w", err)
	}
	cfg.DefaultParent = slice
	fs, err := newCgroupfs(cfg, l)
	if err != nil {
		return nil, err
	}
	d := &systemd{cgroupfs: fs, bus: newBus(cfg.Logger), slice: slice, places: placeholders{of: map[string]*placeholder{}}}
	ctx, cancel := context.WithTimeout(context.Background(), dialTimeout)
	defer cancel()
	if d.version, err = d.bus.version(ctx); err != nil {
		return nil, fmt.Errorf("cgroup driver systemd: %w; without systemd set cgroup_driver = \"cgroupfs\" here and cgroupDriver: cgroupfs "+
			"in the kubelet's configuration", err)
	}
	return d, nil
}

func (d *systemd) Name() string { return "systemd" }

// slicePath turns a parent in either form that names a slice ("kubepods-pod1.slice", or that with the slices above it,
// as kubelet does) into the slice's path. The last element says it all, as its dashes do (systemd.slice(5)).
func slicePath(parent string) (string, error) {
	name := path.Base(parent)
	if !strings.HasSuffix(name, ".slice") {
		return "", fmt.Errorf("cgroup parent %q is in the cgroupfs driver's form, but cri-server uses systemd: set cgroupDriver: systemd in the "+
			"kubelet's configuration, or cgroup_driver = \"cgroupfs\" in cri-server's: %w", parent, errdefs.ErrInvalidArgument)
	}
	p, err := sdcgroups.ExpandSlice(name)
	if err != nil || p == "/" {
		return "", fmt.Errorf("cgroup parent %q: no slice can have this name: %w", parent, errdefs.ErrInvalidArgument)
	}
	return p, nil
}

// unitName: what systemd takes unescaped (systemd.unit(5)); the whole name has at most 255 characters.
var unitName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9:_.-]{0,239}$`)

func (d *systemd) Path(parent, id string) (string, error) {
	slice := d.slice
	if parent != "" {
		var err error
		if slice, err = slicePath(parent); err != nil {
			return "", err
		}
	}
	if !unitName.MatchString(id) {
		return "", fmt.Errorf("scope of container %q: not a name: %w", id, errdefs.ErrInvalidArgument)
	}
	return slice + "/" + scopePrefix + "-" + id + ".scope", nil
}

// Stats takes a pod's slice too, in either form.
func (d *systemd) Stats(p string) (*Stats, error) {
	if slice, err := slicePath(p); err == nil {
		p = slice
	}
	s, err := d.cgroupfs.Stats(p)
	if _, _, ok := scopeOf(p); ok && err == nil && d.v2 && s.Pids != nil {
		s.Pids.Current -= min(s.Pids.Current, 1)
		s.Pids.Limit -= min(s.Pids.Limit, 1)
	}
	return s, err
}

// scopeOf splits a path that Path made.
func scopeOf(p string) (slice, scope string, ok bool) {
	slice, scope = path.Base(path.Dir(p)), path.Base(p)
	return slice, scope, strings.HasSuffix(slice, ".slice") && strings.HasSuffix(scope, ".scope") && strings.HasPrefix(scope, scopePrefix+"-")
}

// OCI: the runtime asks systemd for the same scope itself.
func (d *systemd) OCI(p string) OCI {
	slice, scope, ok := scopeOf(p)
	if !ok {
		return d.cgroupfs.OCI(p)
	}
	id := strings.TrimSuffix(strings.TrimPrefix(scope, scopePrefix+"-"), ".scope")
	return OCI{CgroupsPath: slice + ":" + scopePrefix + ":" + id, Args: []string{"--systemd-cgroup"}, Cgroup: d.dirs(p)}
}

func (d *systemd) Create(ctx context.Context, p string, res *specs.LinuxResources) (_ *engine.Cgroup, err error) {
	if p, err = clean(p); err != nil {
		return nil, err
	}
	slice, scope, ok := scopeOf(p)
	if !ok {
		if !d.marked(path.Join(d.primary(), path.Dir(p)), containerMark) {
			return nil, fmt.Errorf("create cgroup %s: not a scope in a slice: %w", p, errdefs.ErrInvalidArgument)
		}
		return d.cgroupfs.Create(ctx, p, res) // an exec session's
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("create scope %s: %w", p, err)
		}
	}()
	res = d.oneMore(res)
	props, err := d.properties(slice, scope, res)
	if err != nil {
		return nil, err
	}
	place, err := startPlaceholder()
	if err != nil {
		return nil, err
	}
	made, err := d.start(ctx, p, place.process.Pid, props)
	if err != nil {
		place.end()
		return nil, err
	}
	d.places.put(p, place)
	d.aside(p, place.process.Pid)
	cg, err := d.fill(p, res)
	if err != nil {
		if made {
			err = errors.Join(err, d.Delete(context.WithoutCancel(ctx), p))
		}
		return nil, err
	}
	return cg, nil
}

// Settle has the placeholder watch the container's process, or ends it.
func (d *systemd) Settle(p string, pid int) {
	p, err := clean(p)
	if err != nil {
		return
	}
	if pid <= 0 {
		d.places.end(p)
		return
	}
	err = d.places.watch(p, pid)
	if errors.Is(err, errdefs.ErrNotFound) {
		err = d.attend(p, pid)
	}
	if err != nil {
		d.log.Warn("a container's scope may go before its end was looked into", "cgroup", p, "error", err)
	}
}

// attend puts a placeholder into a scope that an OCI runtime made: into the hierarchies by which systemd sees whether it is
// empty.
func (d *systemd) attend(p string, pid int) error {
	place, err := startPlaceholder()
	if err != nil {
		return err
	}
	cg, self := d.dirs(p), strconv.Itoa(place.process.Pid)
	if d.v2 {
		err = below(cg.Unified, self)
	} else {
		for _, dir := range []string{cg.V1["name=systemd"], cg.Unified} {
			if dir == "" {
				continue
			}
			e := write(dir, "cgroup.procs", self)
			if errdefs.IsFailedPrecondition(e) { // the runtime has the container in a cgroup of its own below (cgroups(7), no internal processes)
				e = below(dir, self)
			}
			err = errors.Join(err, e)
		}
	}
	if err == nil {
		err = place.watch(pid)
	}
	if err != nil {
		place.end()
		return err
	}
	d.places.put(p, place)
	return nil
}

// below puts a placeholder into a cgroup of its own below a scope.
func below(scope, pid string) error {
	dir := scope + "/" + scopePrefix + "-placeholder"
	if err := unix.Mkdir(dir, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
		return &os.PathError{Op: "mkdir", Path: dir, Err: err}
	}
	return write(dir, "cgroup.procs", pid)
}

// aside takes a placeholder out of the container's way. On v1 it leaves the controllers whose numbers the container is
// judged by. On v2 there is one hierarchy only: it is left out of the count (oneMore, Stats), and has a cgroup of its own,
// because a systemd or dockerd in the container can turn on controllers only in a cgroup that it has moved all processes
// out of (cgroups(7), no internal processes), and it can't see this one.
func (d *systemd) aside(p string, pid int) {
	if d.v2 {
		if err := below(d.dirs(p).Unified, strconv.Itoa(pid)); err != nil {
			d.log.Debug("a placeholder stays in its scope", "cgroup", p, "error", err)
		}
		return
	}
	own, err := cgroups.ParseCgroupFile("/proc/self/cgroup")
	if err != nil {
		return
	}
	for _, c := range []string{"memory", "pids"} {
		if h := d.hierarchy[c]; h != "" {
			if err := write(path.Join(d.v1[h], own[c]), "cgroup.procs", strconv.Itoa(pid)); err != nil {
				d.log.Debug("a placeholder stays in its scope", "controller", c, "error", err)
			}
		}
	}
}

// oneMore makes room for the placeholder.
func (d *systemd) oneMore(r *specs.LinuxResources) *specs.LinuxResources {
	if !d.v2 || r == nil || r.Pids == nil || r.Pids.Limit == nil || *r.Pids.Limit <= 0 {
		return r
	}
	more, limit := *r, *r.Pids.Limit+1
	more.Pids = &specs.LinuxPids{Limit: &limit}
	return &more
}

// Pids leaves the placeholder out.
func (d *systemd) Pids(p string) ([]int, error) {
	pids, err := d.cgroupfs.Pids(p)
	return slices.DeleteFunc(pids, isPlaceholder), err
}

// properties of a new scope.
func (d *systemd) properties(slice, scope string, res *specs.LinuxResources) ([]sd.Property, error) {
	p := &properties{v2: d.v2, version: d.version}
	p.add("Description", "cri-server container "+strings.TrimSuffix(strings.TrimPrefix(scope, scopePrefix+"-"), ".scope"))
	p.add("Slice", slice)
	p.add("Delegate", true)
	// Not stopped like a service when the machine goes down: kubelet ends pods in their own order.
	p.add("DefaultDependencies", false)
	p.add("CPUAccounting", true)
	p.add("MemoryAccounting", true)
	p.add("TasksAccounting", true)
	if d.v2 {
		p.add("IOAccounting", true)
	}
	if d.version >= 236 {
		p.add("CollectMode", "inactive-or-failed") // nobody has to reset it
	}
	if err := p.limits(res, nil); err != nil {
		return nil, err
	}
	if res != nil {
		if err := p.devices(res.Devices); err != nil {
			return nil, err
		}
	}
	return p.list, nil
}

// Update tells the kernel first, which refuses what can't be, and then systemd, which must not write the old values
// again some day.
func (d *systemd) Update(ctx context.Context, p string, r *specs.LinuxResources) error {
	p, err := clean(p)
	if err != nil {
		return err
	}
	_, scope, ok := scopeOf(p)
	if !ok || r == nil {
		return d.cgroupfs.Update(ctx, p, r)
	}
	r = d.oneMore(r)
	props := &properties{v2: d.v2, version: d.version}
	if err := props.limits(r, func() (int64, uint64, error) { return d.quota(p) }); err != nil {
		return fmt.Errorf("update scope %s: %w", p, err)
	}
	settings, undo, err := d.apply(ctx, p, r)
	if err != nil || len(props.list) == 0 {
		return err
	}
	keep, err := d.keepQuota(p) // which systemd rounds, or sets to its default when it writes something else
	if err != nil {
		return fmt.Errorf("update scope %s: %w", p, errors.Join(err, revert(undo)))
	}
	settings = append(settings, keep...)
	if _, err := d.bus.call(ctx, sdPath, sdManager+".SetUnitProperties", nil, scope, true, props.list); err != nil {
		return fmt.Errorf("update scope %s: %w", p, errors.Join(kind(err), revert(undo)))
	}
	for _, s := range settings {
		_ = write(s.dir, s.file, s.value)
	}
	return nil
}

// keepQuota are the settings that bring the CPU quota and period back that are in force.
func (d *systemd) keepQuota(p string) ([]setting, error) {
	if d.hierarchy["cpu"] == "" && !d.v2 {
		return nil, nil
	}
	quota, period, err := d.quota(p)
	if err != nil {
		return nil, err
	}
	if !d.v2 {
		return cpuV1(d.dirs(p).V1[d.hierarchy["cpu"]], &specs.LinuxCPU{Quota: &quota, Period: &period}, true), nil
	}
	return []setting{{d.dirs(p).Unified, "cpu.max", limit64(quota) + " " + strconv.FormatUint(period, 10)}}, nil
}

// quota is the CPU quota (µs, -1 for none) and period (µs) in force.
func (d *systemd) quota(p string) (quota int64, period uint64, err error) {
	cg := d.dirs(p)
	var q, n string
	if d.v2 {
		var s string
		s, err = read(cg.Unified, "cpu.max")
		q, n, _ = strings.Cut(s, " ")
	} else {
		var dir string
		if dir, err = d.controller(cg, "cpu"); err != nil {
			return 0, 0, err
		}
		if q, err = read(dir, "cpu.cfs_quota_us"); err == nil {
			n, err = read(dir, "cpu.cfs_period_us")
		}
	}
	if err != nil {
		return 0, 0, err
	}
	if quota = -1; q != "max" {
		if quota, err = strconv.ParseInt(q, 10, 64); err != nil {
			return 0, 0, err
		}
	}
	period, err = strconv.ParseUint(n, 10, 64)
	return quota, period, err
}
