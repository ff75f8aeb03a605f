package cgroupdriver

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

var hugepageSize = regexp.MustCompile(`^[0-9]+[KMG]B$`)

// wanted are the controllers that limits and stats need, of those the kernel has.
var wanted = []string{"cpu", "cpuset", "memory", "pids", "io", "hugetlb"}

// enable turns on the controllers in every cgroup.subtree_control from the mount down to parent, as far as each level
// has them. What can't be enabled (a cgroup namespace's root with processes in it, a controller that is bound to v1)
// is left: a limit that needs it fails with its name. A cgroup with processes is not even tried: the kernel would take cpu
// and pids there, as controllers of threads, and from then on no process could be moved below it (cgroups(7), threaded
// mode).
func (d *cgroupfs) enable(parent string) {
	has := func(dir, file string) []string {
		s, _ := read(dir, file)
		return strings.Fields(s)
	}
	var want []string
	for _, c := range has(d.unified, "cgroup.controllers") {
		if slices.Contains(wanted, c) {
			want = append(want, c)
		}
	}
	missing := func(dir string) []string {
		have := has(dir, "cgroup.subtree_control")
		return slices.DeleteFunc(slices.Clone(want), func(c string) bool { return slices.Contains(have, c) })
	}
	if len(missing(d.unified+parent)) == 0 {
		return
	}
	dir := d.unified
	for _, part := range append([]string{""}, strings.Split(strings.Trim(parent, "/"), "/")...) {
		if part != "" {
			dir += "/" + part
		}
		lacks := missing(dir)
		if len(lacks) > 0 && exists(dir, "cgroup.type") { // which the machine's root has not got
			if pids, err := procs(dir); err != nil || len(pids) > 0 {
				continue
			}
		}
		for _, c := range lacks {
			_ = write(dir, "cgroup.subtree_control", "+"+c) // one by one: one that fails takes the others with it
		}
	}
}

// planV2 follows Documentation/admin-guide/cgroup-v2.rst of the kernel.
func (d *cgroupfs) planV2(dir string, r *specs.LinuxResources, update bool) ([]setting, error) {
	var all []setting
	add := func(file, value string) { all = append(all, setting{dir, file, value}) }
	if c := r.CPU; c != nil {
		if given(c.RealtimePeriod) || given(c.RealtimeRuntime) {
			return nil, fmt.Errorf("resources.cpu.realtime on cgroup v2: %w", errdefs.ErrNotImplemented)
		}
		if given(c.Idle) {
			add("cpu.idle", strconv.FormatInt(*c.Idle, 10))
		}
		if given(c.Shares) {
			add("cpu.weight", strconv.FormatUint(cgroups.ConvertCPUSharesToCgroupV2Value(*c.Shares), 10))
		}
		if given(c.Quota) || given(c.Period) {
			v, err := cpuMax(dir, c)
			if err != nil {
				return nil, err
			}
			add("cpu.max", v)
		}
		if given(c.Burst) {
			add("cpu.max.burst", strconv.FormatUint(*c.Burst, 10))
		}
		all = append(all, cpuset(dir, c)...)
	}
	if r.Memory != nil {
		s, err := memoryV2(dir, r.Memory, update)
		if err != nil {
			return nil, err
		}
		all = append(all, s...)
	}
	if r.Pids != nil && given(r.Pids.Limit) {
		add("pids.max", limit64(*r.Pids.Limit))
	}
	if r.BlockIO != nil {
		s, err := ioV2(dir, r.BlockIO)
		if err != nil {
			return nil, err
		}
		all = append(all, s...)
	}
	for _, h := range r.HugepageLimits {
		s, err := hugetlb(dir, h, "max", nil)
		if err != nil {
			return nil, err
		}
		all = append(all, s...)
	}
	// After the typed fields, which it overrides (runtime-spec, config-linux.md#unified).
	for _, key := range slices.Sorted(maps.Keys(r.Unified)) {
		if !unifiedKey.MatchString(key) || strings.Contains(key, "..") {
			return nil, fmt.Errorf("unified key %q is not a controller's file: %w", key, errdefs.ErrInvalidArgument)
		}
		for line := range strings.SplitSeq(strings.TrimSpace(r.Unified[key]), "\n") { // io.max takes a device a line
			if key == "memory.max" && update {
				if n, err := strconv.ParseInt(line, 10, 64); err == nil {
					if err := checkUsage(dir, n); err != nil {
						return nil, err
					}
				}
			}
			add(key, line)
		}
	}
	return all, nil
}

func cpuMax(dir string, c *specs.LinuxCPU) (string, error) {
	quota := "max"
	switch {
	case given(c.Quota):
		quota = limit64(*c.Quota)
	default: // a period alone keeps the quota
		s, err := read(dir, "cpu.max")
		if err != nil {
			return "", fmt.Errorf("cpu period: %w", err)
		}
		quota, _, _ = strings.Cut(s, " ")
	}
	if given(c.Period) {
		return quota + " " + strconv.FormatUint(*c.Period, 10), nil
	}
	return quota, nil
}

func memoryV2(dir string, m *specs.LinuxMemory, update bool) ([]setting, error) {
	var s []setting
	if m.Swappiness != nil || given(m.DisableOOMKiller) {
		return nil, fmt.Errorf("resources.memory.swappiness and disableOOMKiller on cgroup v2: %w", errdefs.ErrNotImplemented)
	}
	if given(m.Swap) || given(m.Limit) && *m.Limit < 0 {
		v, err := swapMax(m)
		if err != nil {
			return nil, err
		}
		if exists(dir, "memory.swap.max") {
			s = append(s, setting{dir, "memory.swap.max", v})
		} else if v != "0" && v != "max" {
			return nil, fmt.Errorf("swap limit: swap accounting is off: %w", errdefs.ErrNotImplemented)
		}
	}
	if given(m.Limit) {
		if update {
			if err := checkUsage(dir, *m.Limit); err != nil {
				return nil, err
			}
		}
		s = append(s, setting{dir, "memory.max", limit64(*m.Limit)})
	}
	if given(m.Reservation) {
		s = append(s, setting{dir, "memory.low", limit64(*m.Reservation)})
	}
	return s, nil
}

// swapMax: OCI's swap is memory+swap, v2's is swap alone.
func swapMax(m *specs.LinuxMemory) (string, error) {
	switch {
	case !given(m.Swap) || *m.Swap < 0:
		return "max", nil
	case !given(m.Limit):
		return "", fmt.Errorf("memory+swap limit %d without a memory limit: %w", *m.Swap, errdefs.ErrInvalidArgument)
	case *m.Limit < 0:
		return limit64(*m.Swap), nil
	case *m.Swap < *m.Limit:
		return "", fmt.Errorf("memory+swap limit %d is below the memory limit %d: %w", *m.Swap, *m.Limit, errdefs.ErrInvalidArgument)
	}
	return limit64(*m.Swap - *m.Limit), nil
}

// checkUsage: v2 takes a limit below the usage and kills for it; an update must not.
func checkUsage(dir string, limit int64) error {
	usage, ok, err := number(dir, "memory.current")
	if err != nil {
		return err
	}
	if ok && limit >= 0 && uint64(limit) < usage {
		return fmt.Errorf("memory limit %d is below the current usage of %d: %w", limit, usage, errdefs.ErrFailedPrecondition)
	}
	return nil
}

func ioV2(dir string, b *specs.LinuxBlockIO) ([]setting, error) {
	var s []setting
	if given(b.Weight) || len(b.WeightDevice) > 0 {
		file, bfq := "io.weight", false
		if !exists(dir, file) {
			if file, bfq = "io.bfq.weight", true; !exists(dir, file) {
				return nil, fmt.Errorf("blockIO.weight: neither iocost nor bfq is there: %w", errdefs.ErrNotImplemented)
			}
		}
		value := func(w uint16) string {
			if bfq {
				return strconv.Itoa(int(w))
			}
			return strconv.FormatUint(cgroups.ConvertBlkIOToIOWeightValue(w), 10) // 10..1000 → 1..10000
		}
		if given(b.Weight) {
			s = append(s, setting{dir, file, value(*b.Weight)})
		}
		for _, w := range b.WeightDevice {
			if given(w.LeafWeight) {
				return nil, fmt.Errorf("resources.blockIO.leafWeight: %w", errdefs.ErrNotImplemented)
			}
			if given(w.Weight) {
				s = append(s, setting{dir, file, fmt.Sprintf("%d:%d %s", w.Major, w.Minor, value(*w.Weight))})
			}
		}
	}
	for _, t := range []struct {
		key     string
		devices []specs.LinuxThrottleDevice
	}{
		{"rbps", b.ThrottleReadBpsDevice}, {"wbps", b.ThrottleWriteBpsDevice},
		{"riops", b.ThrottleReadIOPSDevice}, {"wiops", b.ThrottleWriteIOPSDevice},
	} {
		for _, dev := range t.devices {
			rate := strconv.FormatUint(dev.Rate, 10)
			if dev.Rate == 0 {
				rate = "max"
			}
			s = append(s, setting{dir, "io.max", fmt.Sprintf("%d:%d %s=%s", dev.Major, dev.Minor, t.key, rate)})
		}
	}
	return s, nil
}
