package inspect

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Limits reads a cgroup's limits and usage. path is the driver's name for it, unified its directory below the cgroup2
// mount ("" for none), v1 the directories by hierarchy name, as in engine.Cgroup. What a file doesn't tell is left out.
func Limits(path, unified string, v1 map[string]string) *Cgroup {
	c := &Cgroup{Path: path, Version: 2}
	if unified != "" {
		c.Dirs = append(c.Dirs, unified)
	}
	if len(v1) > 0 {
		c.Version = 1
		for _, d := range v1 {
			c.Dirs = append(c.Dirs, d)
		}
		slices.Sort(c.Dirs)
		c.Dirs = slices.Compact(c.Dirs)
		c.readV1(v1)
		return c
	}
	if unified != "" {
		c.readV2(unified)
	}
	return c
}

// readV2: Documentation/admin-guide/cgroup-v2.rst.
func (c *Cgroup) readV2(dir string) {
	f := strings.Fields(read(dir, "cpu.max"))
	if len(f) == 2 {
		c.CPUQuota, c.CPUPeriod = number(f[0]), number(f[1])
		if c.CPUQuota == nil { // max
			c.CPUPeriod = nil
		}
	}
	c.CPUWeight = number(read(dir, "cpu.weight"))
	c.Cpuset = read(dir, "cpuset.cpus")
	c.MemoryMax = number(read(dir, "memory.max"))
	c.MemoryUsage = number(read(dir, "memory.current"))
	c.PidsMax = number(read(dir, "pids.max"))
	c.PidsCurrent = number(read(dir, "pids.current"))
	for line := range strings.Lines(read(dir, "cpu.stat")) {
		if us, ok := strings.CutPrefix(strings.TrimSpace(line), "usage_usec "); ok {
			if n, err := strconv.ParseUint(us, 10, 64); err == nil {
				n *= 1000
				c.CPUUsage = &n
			}
		}
	}
}

// readV1: Documentation/admin-guide/cgroup-v1.
func (c *Cgroup) readV1(dirs map[string]string) {
	dir := func(controller string) string {
		for name, d := range dirs {
			if slices.Contains(strings.Split(name, ","), controller) {
				return d
			}
		}
		return ""
	}
	if c.CPUQuota = number(read(dir("cpu"), "cpu.cfs_quota_us")); c.CPUQuota != nil && *c.CPUQuota < 0 {
		c.CPUQuota = nil
	}
	if c.CPUQuota != nil {
		c.CPUPeriod = number(read(dir("cpu"), "cpu.cfs_period_us"))
	}
	c.CPUShares = number(read(dir("cpu"), "cpu.shares"))
	c.Cpuset = read(dir("cpuset"), "cpuset.cpus")
	// No limit reads as the largest multiple of the page size.
	if c.MemoryMax = number(read(dir("memory"), "memory.limit_in_bytes")); c.MemoryMax != nil && *c.MemoryMax > 1<<62 {
		c.MemoryMax = nil
	}
	c.MemoryUsage = number(read(dir("memory"), "memory.usage_in_bytes"))
	c.PidsMax = number(read(dir("pids"), "pids.max"))
	c.PidsCurrent = number(read(dir("pids"), "pids.current"))
	if n, err := strconv.ParseUint(read(dir("cpuacct"), "cpuacct.usage"), 10, 64); err == nil {
		c.CPUUsage = &n
	}
}

func read(dir, file string) string {
	if dir == "" {
		return ""
	}
	b, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// number is nil for "max", for a missing file, and for what is no number.
func number(s string) *int64 {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return nil
	}
	return &n
}
