package cri

import "github.com/seed-9a14075a/cri-server/pkg/cgroupdriver"

// Names and values of labels.
var (
	deviceLabel   = []string{"device"}
	totalLabel    = []string{"total"}
	maxFilesLabel = []string{"max_open_files"}
)

// containerMetrics are of one running container. kubelet asks for descriptors once, so this table never changes at run
// time.
var containerMetrics = []metric[*reading]{
	{"container_last_seen", "Unix time at which the container was last looked at.", gauge, nil, always(lastSeen)},
	{"container_start_time_seconds", "Unix time at which the container was started.", gauge, nil,
		always(func(r *reading) uint64 { return unixTime(r.ctr.StartedAt) })},

	{"container_cpu_usage_seconds_total", "CPU time used, in seconds.", counter, []string{"cpu"}, func(to []value, r *reading) []value {
		if r.stats.CPU == nil {
			return to
		}
		return append(to, value{n: seconds(r.stats.CPU.Usage), labels: totalLabel})
	}},
	{"container_cpu_user_seconds_total", "CPU time used in user mode, in seconds.", counter, nil,
		ofCPU(func(c *cgroupdriver.CPUStats) uint64 { return seconds(c.User) })},
	{"container_cpu_system_seconds_total", "CPU time used in the kernel, in seconds.", counter, nil,
		ofCPU(func(c *cgroupdriver.CPUStats) uint64 { return seconds(c.System) })},
	{"container_cpu_cfs_periods_total", "CPU quota periods in which the container was runnable.", counter, nil,
		ofCPU(func(c *cgroupdriver.CPUStats) uint64 { return c.Periods })},
	{"container_cpu_cfs_throttled_periods_total", "CPU quota periods in which the container was throttled.", counter, nil,
		ofCPU(func(c *cgroupdriver.CPUStats) uint64 { return c.ThrottledPeriods })},
	{"container_cpu_cfs_throttled_seconds_total", "Time for which the container was throttled, in seconds.", counter, nil,
		ofCPU(func(c *cgroupdriver.CPUStats) uint64 { return seconds(c.ThrottledTime) })},

	{"container_memory_usage_bytes", "Memory in use, with caches.", gauge, nil,
		ofMemory(func(m *cgroupdriver.MemoryStats) uint64 { return m.Usage })},
	{"container_memory_working_set_bytes", "Memory in use, without file pages that can be dropped at once.", gauge, nil,
		ofMemory(func(m *cgroupdriver.MemoryStats) uint64 { return m.WorkingSet })},
	{"container_memory_max_usage_bytes", "Most memory that was ever in use.", gauge, nil,
		ofMemory(func(m *cgroupdriver.MemoryStats) uint64 { return m.MaxUsage })},
	{"container_memory_rss", "Anonymous memory, in bytes.", gauge, nil,
		ofMemory(func(m *cgroupdriver.MemoryStats) uint64 { return m.RSS })},
	{"container_memory_cache", "Page cache, in bytes.", gauge, nil,
		ofMemory(func(m *cgroupdriver.MemoryStats) uint64 { return m.Cache })},
	{"container_memory_mapped_file", "Memory-mapped files, in bytes.", gauge, nil,
		ofMemory(func(m *cgroupdriver.MemoryStats) uint64 { return m.MappedFile })},
	{"container_memory_total_active_file_bytes", "Page cache that was used lately.", gauge, nil,
		ofMemory(func(m *cgroupdriver.MemoryStats) uint64 { return m.ActiveFile })},
	{"container_memory_total_inactive_file_bytes", "Page cache that was not used lately.", gauge, nil,
		ofMemory(func(m *cgroupdriver.MemoryStats) uint64 { return m.InactiveFile })},
	{"container_memory_kernel_usage", "Memory that the kernel uses for the container, in bytes; cgroup v2 only.", gauge, nil,
		func(to []value, r *reading) []value {
			if r.version == 1 || r.stats.Memory == nil {
				return to
			}
			return one(to, r.stats.Memory.Kernel)
		}},
	{"container_memory_swap", "Swap in use, in bytes.", gauge, nil, swap},
	{"container_memory_failcnt", "Times that the memory limit was hit.", counter, nil,
		ofMemory(func(m *cgroupdriver.MemoryStats) uint64 { return m.FailCount })},
	{"container_memory_failures_total", "Page faults.", counter, []string{"failure_type", "scope"}, pageFaults},
	{"container_memory_events_high_total", "Times that the container was slowed down for using more than memory.high.", counter, nil,
		ofMemory(func(m *cgroupdriver.MemoryStats) uint64 { return m.EventsHigh })},
	{"container_memory_events_max_total", "Times that the container was about to use more than memory.max.", counter, nil,
		ofMemory(func(m *cgroupdriver.MemoryStats) uint64 { return m.EventsMax })},
	{"container_oom_events_total", "Processes that the kernel killed for want of memory.", counter, nil,
		ofMemory(func(m *cgroupdriver.MemoryStats) uint64 { return m.OOMKills })},

	{"container_blkio_device_usage_total", "Bytes read from and written to block devices.", counter,
		[]string{"device", "major", "minor", "operation"}, blkio},
	{"container_fs_reads_bytes_total", "Bytes read from block devices.", counter, deviceLabel,
		ofDevices(func(d *deviceIO) uint64 { return d.ReadBytes })},
	{"container_fs_reads_total", "Reads from block devices.", counter, deviceLabel,
		ofDevices(func(d *deviceIO) uint64 { return d.ReadIOs })},
	{"container_fs_writes_bytes_total", "Bytes written to block devices.", counter, deviceLabel,
		ofDevices(func(d *deviceIO) uint64 { return d.WriteBytes })},
	{"container_fs_writes_total", "Writes to block devices.", counter, deviceLabel,
		ofDevices(func(d *deviceIO) uint64 { return d.WriteIOs })},
	{"container_fs_usage_bytes", "Bytes used by the writable layer.", gauge, deviceLabel, layerBytes},
	{"container_fs_limit_bytes", "Size of the writable layer's file system.", gauge, deviceLabel,
		ofFilesystem(func(f *filesystem) uint64 { return f.bytes })},
	{"container_fs_inodes_total", "Inodes of the writable layer's file system.", gauge, deviceLabel,
		ofFilesystem(func(f *filesystem) uint64 { return f.inodes })},
	{"container_fs_inodes_free", "Free inodes of the writable layer's file system.", gauge, deviceLabel,
		ofFilesystem(func(f *filesystem) uint64 { return f.inodesFree })},

	{"container_processes", "Processes.", gauge, nil, ofProcesses(func(p *processes) uint64 { return p.count })},
	{"container_file_descriptors", "Open files.", gauge, nil, ofProcesses(func(p *processes) uint64 { return p.files })},
	{"container_sockets", "Open sockets.", gauge, nil, ofProcesses(func(p *processes) uint64 { return p.sockets })},
	{"container_ulimits_soft", "Soft limits of the container's first process.", gauge, []string{"ulimit"}, func(to []value, r *reading) []value {
		if r.processes == nil || r.processes.maxFiles == nil {
			return to
		}
		return append(to, value{n: *r.processes.maxFiles, labels: maxFilesLabel})
	}},
	{"container_threads", "Threads.", gauge, nil, ofPids(func(p *cgroupdriver.PidsStats) uint64 { return p.Current })},
	{"container_threads_max", "Most threads that are allowed; 0 is no limit.", gauge, nil,
		ofPids(func(p *cgroupdriver.PidsStats) uint64 { return p.Limit })},

	{"container_spec_cpu_period", "CPU quota period, in µs.", gauge, nil,
		always(func(r *reading) uint64 { return orDefault(r.ctr.Resources.GetCpuPeriod(), 100000) })},
	{"container_spec_cpu_quota", "CPU quota, in µs per period; containers without one have no value.", gauge, nil, func(to []value, r *reading) []value {
		if r.ctr.Resources.GetCpuQuota() <= 0 {
			return to
		}
		return one(to, uint64(r.ctr.Resources.GetCpuQuota()))
	}},
	{"container_spec_cpu_shares", "CPU shares.", gauge, nil,
		always(func(r *reading) uint64 { return orDefault(r.ctr.Resources.GetCpuShares(), 1024) })},
	{"container_spec_memory_limit_bytes", "Memory limit; 0 is none.", gauge, nil,
		ofMemory(func(m *cgroupdriver.MemoryStats) uint64 { return m.Limit })},
	{"container_spec_memory_reservation_limit_bytes", "Memory use above which the container is slowed down; 0 is none.", gauge, nil,
		always(memoryReservation)},
	{"container_spec_memory_swap_limit_bytes", "Swap limit, on cgroup v1 of memory and swap together; 0 is none.", gauge, nil, always(swapLimit)},

	{"container_pressure_cpu_waiting_seconds_total", "Time for which some task waited for a CPU, in seconds.", counter, nil, pressure(cpuPressure, waiting)},
	{"container_pressure_cpu_stalled_seconds_total", "Time for which all tasks waited for a CPU, in seconds.", counter, nil, pressure(cpuPressure, stalled)},
	{"container_pressure_memory_waiting_seconds_total", "Time for which some task waited for memory, in seconds.", counter, nil, pressure(memoryPressure, waiting)},
	{"container_pressure_memory_stalled_seconds_total", "Time for which all tasks waited for memory, in seconds.", counter, nil, pressure(memoryPressure, stalled)},
	{"container_pressure_io_waiting_seconds_total", "Time for which some task waited for I/O, in seconds.", counter, nil, pressure(ioPressure, waiting)},
	{"container_pressure_io_stalled_seconds_total", "Time for which all tasks waited for I/O, in seconds.", counter, nil, pressure(ioPressure, stalled)},
}
