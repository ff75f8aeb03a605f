package cgroupdriver

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Usage implements Driver. A list of a thousand containers is made of it, so it reads half as many files as Stats.
func (d *cgroupfs) Usage(path string) (*Stats, error) {
	path, err := clean(path)
	if err != nil {
		return nil, err
	}
	s := &Stats{Time: time.Now(), IO: &IOStats{}}
	if d.v2 {
		err = usageV2(d.unified+path, s)
	} else {
		err = d.usageV1(path, s)
	}
	if errors.Is(err, unix.ENODEV) || errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: %w", errGone, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("usage of cgroup %s: %w", path, err)
	}
	return s, nil
}

// Usage takes a pod's slice too, in either form.
func (d *systemd) Usage(p string) (*Stats, error) {
	if slice, err := slicePath(p); err == nil {
		p = slice
	}
	return d.cgroupfs.Usage(p)
}

// Tasks implements Driver.
func (d *cgroupfs) Tasks(path string) (uint64, error) {
	path, err := clean(path)
	if err != nil {
		return 0, err
	}
	dir := d.unified
	if !d.v2 {
		h, ok := d.hierarchy["pids"]
		if !ok {
			return 0, fmt.Errorf("tasks of cgroup %s: the pids controller is not mounted: %w", path, errdefs.ErrNotImplemented)
		}
		dir = d.v1[h]
	}
	n, _, err := number(dir+path, "pids.current")
	if errors.Is(err, unix.ENODEV) || errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w, or has no pids controller: %w", errGone, errdefs.ErrNotFound)
	}
	if err != nil {
		return 0, fmt.Errorf("tasks of cgroup %s: %w", path, err)
	}
	return n, nil
}

// Tasks takes a pod's slice too, in either form.
func (d *systemd) Tasks(p string) (uint64, error) {
	if slice, err := slicePath(p); err == nil {
		p = slice
	}
	n, err := d.cgroupfs.Tasks(p)
	if _, _, ok := scopeOf(p); ok && d.v2 {
		n -= min(n, 1) // the placeholder
	}
	return n, err
}

func (d *cgroupfs) usageV1(path string, s *Stats) error {
	found, missing := "", false
	for _, c := range []struct {
		controller string
		read       func(dir string, s *Stats) error
	}{{"cpuacct", cpuUsageV1}, {"memory", memoryUsageV1}} {
		h, ok := d.hierarchy[c.controller]
		if !ok {
			continue
		}
		dir := d.v1[h] + path
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
	if missing { // one hierarchy may lack it (see statsV1); when the other is gone too by now, it has ended
		if _, err := os.Stat(found); err != nil {
			return err
		}
	}
	if d.unified == "" {
		return nil
	}
	unified, err := openDirectory(d.unified + path)
	if err != nil {
		_, err = optional(err)
		return err
	}
	defer unified.close()
	return pressures(unified, s)
}

func cpuUsageV1(dir string, s *Stats) error {
	n, _, err := number(dir, "cpuacct.usage")
	if err == nil {
		s.CPU = &CPUStats{Usage: n}
	}
	return err
}

func memoryUsageV1(path string, s *Stats) error {
	dir, err := openDirectory(path)
	if err != nil {
		return err
	}
	defer dir.close()
	m := &MemoryStats{}
	var swap, within, bothWithin uint64
	err = pick(dir, "memory.stat", counter{"hierarchical_memory_limit", &within}, counter{"hierarchical_memsw_limit", &bothWithin},
		counter{"total_rss", &m.RSS}, counter{"total_inactive_file", &m.InactiveFile},
		counter{"total_pgfault", &m.PageFaults}, counter{"total_pgmajfault", &m.MajorPageFaults}, counter{"total_swap", &swap})
	if err != nil {
		return err
	}
	if m.Usage, _, err = dir.number("memory.usage_in_bytes"); err != nil {
		return err
	}
	// Where neither the cgroup nor one above it has a limit, there is no need to read its own.
	if within < unlimited {
		if m.Limit, _, err = dir.number("memory.limit_in_bytes"); err != nil {
			return err
		}
		if m.Limit >= unlimited {
			m.Limit = 0
		}
	}
	m.workingSet(m.InactiveFile)
	s.Memory = m
	both := bothWithin
	if bothWithin < unlimited {
		both, _, err = dir.number("memory.memsw.limit_in_bytes")
		if ok, err := optional(err); !ok {
			return err
		}
	}
	s.Swap = swapV1(swap, both, m.Limit)
	return nil
}

func usageV2(path string, s *Stats) error {
	dir, err := openDirectory(path)
	if err != nil {
		return err
	}
	defer dir.close()
	c := &CPUStats{}
	if err := pick(dir, "cpu.stat", counter{"usage_usec", &c.Usage}); err != nil {
		return err
	}
	c.Usage *= 1000
	s.CPU = c
	m := &MemoryStats{}
	err = pick(dir, "memory.stat", counter{"anon", &m.RSS}, counter{"pgfault", &m.PageFaults},
		counter{"pgmajfault", &m.MajorPageFaults}, counter{"inactive_file", &m.InactiveFile})
	ok, err := optional(err)
	if err != nil {
		return err
	}
	if !ok { // the controller is off, or the cgroup has gone meanwhile
		if _, err := os.Stat(path); err != nil {
			return err
		}
		return pressures(dir, s)
	}
	if m.Usage, _, err = dir.number("memory.current"); err != nil {
		return err
	}
	if m.Limit, _, err = dir.number("memory.max"); err != nil {
		return err
	}
	m.workingSet(m.InactiveFile)
	s.Memory = m
	if s.Swap, err = swapV2(dir); err != nil {
		return err
	}
	return pressures(dir, s)
}

// counter is a line of a file that is wanted.
type counter struct {
	name string
	to   *uint64
}

// pick reads those lines of a file of "name number" lines that are wanted. The file is parsed where it lies: memory.stat
// has some sixty lines.
func pick(dir directory, file string, wanted ...counter) error {
	return dir.withFile(file, func(text []byte) {
		left := len(wanted)
		for len(text) > 0 && left > 0 {
			line, rest, _ := bytes.Cut(text, []byte{'\n'})
			text = rest
			for _, w := range wanted {
				if len(line) > len(w.name) && line[len(w.name)] == ' ' && string(line[:len(w.name)]) == w.name {
					*w.to, left = decimal(line[len(w.name)+1:]), left-1
					break
				}
			}
		}
	})
}

// decimal is the number that b begins with.
func decimal(b []byte) (n uint64) {
	for _, c := range b {
		if c < '0' || c > '9' {
			break
		}
		n = 10*n + uint64(c-'0')
	}
	return n
}
