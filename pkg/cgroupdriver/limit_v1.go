package cgroupdriver

import (
	"fmt"
	"strconv"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

// planV1 follows Documentation/admin-guide/cgroup-v1 of the kernel.
func (d *cgroupfs) planV1(cg *engine.Cgroup, r *specs.LinuxResources, update bool) ([]setting, error) {
	if len(r.Unified) > 0 {
		return nil, fmt.Errorf("unified resources need cgroup v2, this node has v1: %w", errdefs.ErrNotImplemented)
	}
	var all []setting
	for _, part := range []struct {
		controller string
		wanted     bool
		plan       func(dir string) ([]setting, error)
	}{
		{"cpu", r.CPU != nil && (given(r.CPU.Shares) || given(r.CPU.Quota) || given(r.CPU.Period) || given(r.CPU.Burst) ||
			given(r.CPU.Idle) || given(r.CPU.RealtimePeriod) || given(r.CPU.RealtimeRuntime)),
			func(dir string) ([]setting, error) { return cpuV1(dir, r.CPU, update), nil }},
		{"cpuset", r.CPU != nil && (r.CPU.Cpus != "" || r.CPU.Mems != ""),
			func(dir string) ([]setting, error) { return cpuset(dir, r.CPU), nil }},
		{"memory", r.Memory != nil && *r.Memory != (specs.LinuxMemory{}),
			func(dir string) ([]setting, error) { return memoryV1(dir, r.Memory) }},
		{"pids", r.Pids != nil && given(r.Pids.Limit),
			func(dir string) ([]setting, error) { return []setting{{dir, "pids.max", limit64(*r.Pids.Limit)}}, nil }},
		{"blkio", r.BlockIO != nil, func(dir string) ([]setting, error) { return blkioV1(dir, r.BlockIO) }},
	} {
		if !part.wanted {
			continue
		}
		dir, err := d.controller(cg, part.controller)
		if err != nil {
			return nil, err
		}
		s, err := part.plan(dir)
		if err != nil {
			return nil, err
		}
		all = append(all, s...)
	}
	for _, h := range r.HugepageLimits {
		dir, err := d.controller(cg, "hugetlb")
		s, err := hugetlb(dir, h, "limit_in_bytes", err)
		if err != nil {
			return nil, err
		}
		all = append(all, s...)
	}
	return all, nil
}

func cpuV1(dir string, c *specs.LinuxCPU, update bool) []setting {
	var s []setting
	add := func(file, value string) { s = append(s, setting{dir, file, value}) }
	if given(c.Idle) {
		add("cpu.idle", strconv.FormatInt(*c.Idle, 10))
	}
	if given(c.Shares) {
		add("cpu.shares", strconv.FormatUint(*c.Shares, 10))
	}
	if given(c.Period) && given(c.Quota) && update {
		// The ratio of the two must never exceed the parent's, not even between the two writes.
		add("cpu.cfs_quota_us", "-1")
	}
	if given(c.Period) {
		add("cpu.cfs_period_us", strconv.FormatUint(*c.Period, 10))
	}
	if given(c.Quota) {
		add("cpu.cfs_quota_us", strconv.FormatInt(max(*c.Quota, -1), 10))
	}
	if given(c.Burst) {
		add("cpu.cfs_burst_us", strconv.FormatUint(*c.Burst, 10))
	}
	if given(c.RealtimePeriod) {
		add("cpu.rt_period_us", strconv.FormatUint(*c.RealtimePeriod, 10))
	}
	if given(c.RealtimeRuntime) {
		add("cpu.rt_runtime_us", strconv.FormatInt(*c.RealtimeRuntime, 10))
	}
	return s
}

// cpuset files have the same names on v1 and v2.
func cpuset(dir string, c *specs.LinuxCPU) []setting {
	var s []setting
	if c.Cpus != "" {
		s = append(s, setting{dir, "cpuset.cpus", c.Cpus})
	}
	if c.Mems != "" {
		s = append(s, setting{dir, "cpuset.mems", c.Mems})
	}
	return s
}

// memoryV1: memory+swap must never be below memory. So the larger limit goes first when it grows, last when it shrinks.
func memoryV1(dir string, m *specs.LinuxMemory) ([]setting, error) {
	limit := setting{dir, "memory.limit_in_bytes", ""}
	swap := setting{dir, "memory.memsw.limit_in_bytes", ""}
	var s []setting
	if given(m.Limit) {
		limit.value = strconv.FormatInt(max(*m.Limit, -1), 10)
	}
	if given(m.Swap) {
		swap.value = strconv.FormatInt(max(*m.Swap, -1), 10)
	} else if given(m.Limit) && *m.Limit < 0 {
		swap.value = "-1" // unlimited memory below a limit of memory+swap is not possible
	}
	if swap.value != "" && !exists(dir, swap.file) {
		if given(m.Swap) && (!given(m.Limit) || *m.Swap != *m.Limit) {
			return nil, fmt.Errorf("swap limit: swap accounting is off (boot with swapaccount=1): %w", errdefs.ErrNotImplemented)
		}
		swap.value = ""
	}
	switch {
	case limit.value == "":
	case swap.value == "":
		s = append(s, limit)
		limit.value = ""
	default:
		current, _, err := number(dir, swap.file)
		if err != nil {
			return nil, err
		}
		if *m.Limit < 0 || uint64(*m.Limit) > current {
			s = append(s, swap, limit)
			swap.value = ""
		} else {
			s = append(s, limit)
		}
	}
	if swap.value != "" {
		s = append(s, swap)
	}
	if given(m.Reservation) {
		s = append(s, setting{dir, "memory.soft_limit_in_bytes", strconv.FormatInt(max(*m.Reservation, -1), 10)})
	}
	if m.Swappiness != nil {
		s = append(s, setting{dir, "memory.swappiness", strconv.FormatUint(*m.Swappiness, 10)})
	}
	if given(m.DisableOOMKiller) {
		s = append(s, setting{dir, "memory.oom_control", "1"})
	}
	return s, nil
}

func blkioV1(dir string, b *specs.LinuxBlockIO) ([]setting, error) {
	var s []setting
	if given(b.Weight) || len(b.WeightDevice) > 0 {
		file := ""
		for _, f := range []string{"blkio.weight", "blkio.bfq.weight"} {
			if exists(dir, f) {
				file = f
				break
			}
		}
		if file == "" {
			return nil, fmt.Errorf("blockIO.weight: no I/O scheduler of this kernel has weights (bfq has): %w", errdefs.ErrNotImplemented)
		}
		if given(b.Weight) {
			s = append(s, setting{dir, file, strconv.Itoa(int(*b.Weight))})
		}
		for _, w := range b.WeightDevice {
			if given(w.LeafWeight) {
				return nil, fmt.Errorf("resources.blockIO.leafWeight: %w", errdefs.ErrNotImplemented)
			}
			if given(w.Weight) {
				s = append(s, setting{dir, file + "_device", fmt.Sprintf("%d:%d %d", w.Major, w.Minor, *w.Weight)})
			}
		}
	}
	for _, t := range []struct {
		file    string
		devices []specs.LinuxThrottleDevice
	}{
		{"blkio.throttle.read_bps_device", b.ThrottleReadBpsDevice},
		{"blkio.throttle.write_bps_device", b.ThrottleWriteBpsDevice},
		{"blkio.throttle.read_iops_device", b.ThrottleReadIOPSDevice},
		{"blkio.throttle.write_iops_device", b.ThrottleWriteIOPSDevice},
	} {
		for _, dev := range t.devices {
			s = append(s, setting{dir, t.file, fmt.Sprintf("%d:%d %d", dev.Major, dev.Minor, dev.Rate)})
		}
	}
	return s, nil
}

// hugetlb: the kubelet sends 0 for page sizes that the controller may not have; only a real limit is an error then.
func hugetlb(dir string, h specs.LinuxHugepageLimit, suffix string, missing error) ([]setting, error) {
	if !hugepageSize.MatchString(h.Pagesize) {
		return nil, fmt.Errorf("hugepage size %q: %w", h.Pagesize, errdefs.ErrInvalidArgument)
	}
	file := "hugetlb." + h.Pagesize + "." + suffix
	if missing == nil && !exists(dir, file) {
		missing = fmt.Errorf("no file %s: %w", file, errdefs.ErrNotImplemented)
	}
	if missing != nil {
		if h.Limit == 0 {
			return nil, nil
		}
		return nil, fmt.Errorf("hugepage limit %s=%d: %w", h.Pagesize, h.Limit, missing)
	}
	s := []setting{{dir, file, strconv.FormatUint(h.Limit, 10)}}
	// Without a limit of the reservation a process may map more than it can touch and dies by SIGBUS (Linux 5.7).
	if rsvd := "hugetlb." + h.Pagesize + ".rsvd." + suffix; exists(dir, rsvd) {
		s = append(s, setting{dir, rsvd, strconv.FormatUint(h.Limit, 10)})
	}
	return s, nil
}
