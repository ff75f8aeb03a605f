package cgroupdriver

import (
	"os"
	"strconv"
	"strings"
)

func statsV2(dir string, s *Stats) error {
	for _, read := range []func(string, *Stats) error{cpuStatsV2, memoryStatsV2, pidsStats, ioStatsV2} {
		if err := read(dir, s); err != nil {
			return err
		}
	}
	if s.Memory == nil || s.Pids == nil || s.IO == nil { // the controllers are off, or the cgroup has gone meanwhile
		if _, err := os.Stat(dir); err != nil {
			return err
		}
	}
	return pressures(at(dir), s)
}

// cpuStatsV2: the usage is there without the controller too; times are µs.
func cpuStatsV2(dir string, s *Stats) error {
	kv, err := keyed(dir, "cpu.stat")
	if err != nil {
		return err
	}
	s.CPU = &CPUStats{
		Usage: kv["usage_usec"] * 1000, User: kv["user_usec"] * 1000, System: kv["system_usec"] * 1000,
		Periods: kv["nr_periods"], ThrottledPeriods: kv["nr_throttled"], ThrottledTime: kv["throttled_usec"] * 1000,
	}
	return nil
}

func memoryStatsV2(dir string, s *Stats) error {
	kv, err := keyed(dir, "memory.stat")
	if ok, err := optional(err); !ok {
		return err
	}
	m := &MemoryStats{
		RSS: kv["anon"], Cache: kv["file"], MappedFile: kv["file_mapped"], PageFaults: kv["pgfault"], MajorPageFaults: kv["pgmajfault"],
		ActiveFile: kv["active_file"], InactiveFile: kv["inactive_file"], Kernel: kv["kernel"],
	}
	if m.Usage, _, err = number(dir, "memory.current"); err != nil {
		return err
	}
	if m.Limit, _, err = number(dir, "memory.max"); err != nil {
		return err
	}
	if peak, _, err := number(dir, "memory.peak"); err == nil { // Linux 5.19
		m.MaxUsage = peak
	}
	events, err := keyed(dir, "memory.events")
	if err != nil {
		return err
	}
	m.EventsHigh, m.EventsMax, m.OOMKills = events["high"], events["max"], events["oom_kill"]
	m.FailCount = m.EventsMax
	m.workingSet(kv["inactive_file"])
	s.Memory = m
	s.Swap, err = swapV2(at(dir))
	return err
}

// swapV2 is nil where swap is not accounted for.
func swapV2(dir directory) (*SwapStats, error) {
	usage, _, err := dir.number("memory.swap.current")
	if ok, err := optional(err); !ok {
		return nil, err
	}
	s := &SwapStats{Usage: usage}
	limit, limited, err := dir.number("memory.swap.max")
	if err != nil {
		return nil, err
	}
	if limited {
		free := limit - min(limit, usage)
		s.Available = &free
	}
	return s, nil
}

// ioStatsV2 reads lines of "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0".
func ioStatsV2(dir string, s *Stats) error {
	text, err := read(dir, "io.stat")
	if ok, err := optional(err); !ok {
		return err
	}
	s.IO = &IOStats{}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue // a device without I/O is listed bare by some kernels
		}
		d := s.IO.device(f[0])
		if d == nil {
			continue
		}
		for _, kv := range f[1:] {
			k, v, _ := strings.Cut(kv, "=")
			n, err := strconv.ParseUint(v, 10, 64)
			if err != nil {
				continue
			}
			switch k {
			case "rbytes":
				d.ReadBytes = n
			case "wbytes":
				d.WriteBytes = n
			case "rios":
				d.ReadIOs = n
			case "wios":
				d.WriteIOs = n
			}
		}
	}
	return nil
}
