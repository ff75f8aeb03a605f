package cgroupdriver

import (
	"errors"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

// statsV1 reads the hierarchies one by one. An OCI runtime may have left one out; when one that was read is gone at the
// end, all is.
func (d *cgroupfs) statsV1(cg *engine.Cgroup, s *Stats) error {
	found, missing := "", false
	for _, c := range []struct {
		controller string
		read       func(dir string, s *Stats) error
	}{
		{"cpuacct", cpuacctV1}, {"cpu", cpuStatsV1}, {"memory", memoryStatsV1}, {"pids", pidsStats}, {"blkio", blkioStatsV1},
	} {
		dir := cg.V1[d.hierarchy[c.controller]]
		if dir == "" {
			continue
		}
		switch err := c.read(dir, s); {
		case errors.Is(err, unix.ENODEV), errors.Is(err, fs.ErrNotExist):
			missing = true
		case err != nil:
			return err
		default:
			found = dir
		}
	}
	if found == "" {
		return fs.ErrNotExist
	}
	if missing {
		if _, err := os.Stat(found); err != nil {
			return err
		}
	}
	if cg.Unified == "" {
		return nil
	}
	return pressures(at(cg.Unified), s)
}

// cpuacctV1: usage_user and usage_sys are in ns, from Linux 4.7 on.
func cpuacctV1(dir string, s *Stats) error {
	c := &CPUStats{}
	for _, f := range []struct {
		file string
		to   *uint64
	}{{"cpuacct.usage", &c.Usage}, {"cpuacct.usage_user", &c.User}, {"cpuacct.usage_sys", &c.System}} {
		n, _, err := number(dir, f.file)
		if err != nil {
			return err
		}
		*f.to = n
	}
	s.CPU = c
	return nil
}

func cpuStatsV1(dir string, s *Stats) error {
	kv, err := keyed(dir, "cpu.stat")
	if err != nil {
		return err
	}
	if s.CPU == nil {
		s.CPU = &CPUStats{}
	}
	s.CPU.Periods, s.CPU.ThrottledPeriods, s.CPU.ThrottledTime = kv["nr_periods"], kv["nr_throttled"], kv["throttled_time"]
	return nil
}

// memoryStatsV1 uses the total_ values: the cgroup with those below it, as usage_in_bytes counts.
func memoryStatsV1(dir string, s *Stats) error {
	kv, err := keyed(dir, "memory.stat")
	if err != nil {
		return err
	}
	m := &MemoryStats{
		RSS: kv["total_rss"], Cache: kv["total_cache"], MappedFile: kv["total_mapped_file"],
		ActiveFile: kv["total_active_file"], InactiveFile: kv["total_inactive_file"],
		PageFaults: kv["total_pgfault"], MajorPageFaults: kv["total_pgmajfault"],
	}
	for _, f := range []struct {
		file string
		to   *uint64
	}{
		{"memory.usage_in_bytes", &m.Usage}, {"memory.limit_in_bytes", &m.Limit}, {"memory.max_usage_in_bytes", &m.MaxUsage},
		{"memory.failcnt", &m.FailCount},
	} {
		n, _, err := number(dir, f.file)
		if err != nil {
			return err
		}
		*f.to = n
	}
	if m.Limit >= unlimited {
		m.Limit = 0
	}
	// Where the limits of memory and of memory+swap are the same, the second is the one that is hit.
	if n, _, err := number(dir, "memory.memsw.failcnt"); err == nil {
		m.FailCount += n
	}
	m.EventsMax = m.FailCount
	m.workingSet(kv["total_inactive_file"])
	if oom, err := keyed(dir, "memory.oom_control"); err == nil {
		m.OOMKills = oom["oom_kill"] // Linux 4.13
	}
	s.Memory = m
	both, _, err := number(dir, "memory.memsw.limit_in_bytes")
	if ok, err := optional(err); !ok {
		return err
	}
	s.Swap = swapV1(kv["total_swap"], both, m.Limit)
	return nil
}

// swapV1 tells what is left of a limit of memory and swap together.
func swapV1(usage, both, memory uint64) *SwapStats {
	s := &SwapStats{Usage: usage}
	if both < unlimited && memory > 0 && both >= memory {
		limit := both - memory
		free := limit - min(limit, usage)
		s.Available = &free
	}
	return s
}

// pidsStats: the files are the same on v1 and v2. The root has none.
func pidsStats(dir string, s *Stats) error {
	current, _, err := number(dir, "pids.current")
	if ok, err := optional(err); !ok {
		return err
	}
	limit, _, err := number(dir, "pids.max")
	if err != nil {
		return err
	}
	s.Pids = &PidsStats{Current: current, Limit: limit}
	return nil
}

// blkioStatsV1 reads lines of "8:0 Read 4096"; bfq's files where the kernel has no throttling, which counts all I/O.
func blkioStatsV1(dir string, s *Stats) error {
	io := &IOStats{}
	for _, kind := range []string{"throttle", "bfq"} {
		bytes, err := read(dir, "blkio."+kind+".io_service_bytes_recursive")
		if ok, err := optional(err); err != nil {
			return err
		} else if !ok {
			continue
		}
		operations, err := read(dir, "blkio."+kind+".io_serviced_recursive")
		if err != nil {
			return err
		}
		io.addV1(bytes, false)
		io.addV1(operations, true)
		s.IO = io
		return nil
	}
	_, err := os.Stat(dir)
	return err
}

func (io *IOStats) addV1(text string, operations bool) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) != 3 {
			continue
		}
		n, err := strconv.ParseUint(f[2], 10, 64)
		if err != nil {
			continue
		}
		d := io.device(f[0])
		switch {
		case d == nil:
		case f[1] == "Read" && operations:
			d.ReadIOs += n
		case f[1] == "Read":
			d.ReadBytes += n
		case f[1] == "Write" && operations:
			d.WriteIOs += n
		case f[1] == "Write":
			d.WriteBytes += n
		}
	}
}
