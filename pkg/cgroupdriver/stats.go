package cgroupdriver

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// unlimited: v1 shows no limit as the largest number of whole pages that fits.
const unlimited = 1 << 62

// Stats reads each file once. What a controller that is not there would say stays nil; a cgroup that disappears while
// it is read is ErrNotFound.
func (d *cgroupfs) Stats(path string) (*Stats, error) {
	path, err := clean(path)
	if err != nil {
		return nil, err
	}
	cg := d.dirs(path)
	s := &Stats{Time: time.Now()}
	if d.v2 {
		err = statsV2(cg.Unified, s)
	} else {
		err = d.statsV1(cg, s)
	}
	if errors.Is(err, unix.ENODEV) || errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%w: %w", errGone, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("stats of cgroup %s: %w", path, err)
	}
	return s, nil
}

// pressures reads the PSI files, which every cgroup2 directory has, also in a hybrid layout: processes are in it too.
func pressures(dir directory, s *Stats) error {
	for _, p := range []struct {
		file string
		to   func(*PSI)
	}{
		{"cpu.pressure", func(p *PSI) {
			if s.CPU != nil {
				s.CPU.PSI = p
			}
		}},
		{"memory.pressure", func(p *PSI) {
			if s.Memory != nil {
				s.Memory.PSI = p
			}
		}},
		{"io.pressure", func(p *PSI) {
			if s.IO != nil {
				s.IO.PSI = p
			}
		}},
	} {
		var psi *PSI
		var wrong error
		err := dir.withFile(p.file, func(b []byte) { psi, wrong = parsePSI(b) })
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EOPNOTSUPP) { // no PSI, or psi=0 at boot
			continue
		}
		if err != nil {
			return err
		}
		if wrong != nil {
			return fmt.Errorf("%s: %w", p.file, wrong)
		}
		p.to(psi)
	}
	return nil
}

// parsePSI reads "some avg10=0.00 avg60=0.00 avg300=0.00 total=0" and the like for full; totals are µs.
func parsePSI(text []byte) (*PSI, error) {
	p := &PSI{}
	for line := range bytes.Lines(text) {
		kind, rest, _ := bytes.Cut(bytes.TrimSpace(line), []byte{' '})
		l := &p.Some
		if string(kind) == "full" {
			l = &p.Full
		} else if string(kind) != "some" {
			continue
		}
		for len(rest) > 0 {
			var kv []byte
			kv, rest, _ = bytes.Cut(rest, []byte{' '})
			k, v, _ := bytes.Cut(kv, []byte{'='})
			var err error
			switch string(k) {
			case "avg10":
				l.Avg10, err = strconv.ParseFloat(string(v), 64)
			case "avg60":
				l.Avg60, err = strconv.ParseFloat(string(v), 64)
			case "avg300":
				l.Avg300, err = strconv.ParseFloat(string(v), 64)
			case "total":
				l.Total, err = strconv.ParseUint(string(v), 10, 64)
				l.Total *= 1000
			}
			if err != nil {
				return nil, fmt.Errorf("pressure %q: %w", kv, err)
			}
		}
	}
	return p, nil
}

// keyed reads a file of "name number" lines; other lines are skipped.
func keyed(dir, file string) (map[string]uint64, error) {
	text, err := read(dir, file)
	if err != nil {
		return nil, err
	}
	return parseKeyed(text), nil
}

func parseKeyed(text string) map[string]uint64 {
	m := make(map[string]uint64, 64)
	for line := range strings.Lines(text) {
		k, v, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok {
			continue
		}
		if n, err := strconv.ParseUint(v, 10, 64); err == nil {
			m[k] = n
		}
	}
	return m
}

// optional turns a missing file into false.
func optional(err error) (bool, error) {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.EOPNOTSUPP) {
		return false, nil
	}
	return err == nil, err
}

// workingSet is what can't be given back at once, as the kubelet's eviction counts.
func (m *MemoryStats) workingSet(inactiveFile uint64) {
	m.WorkingSet = m.Usage - min(inactiveFile, m.Usage)
	if m.Limit > 0 {
		a := m.Limit - min(m.WorkingSet, m.Limit)
		m.Available = &a
	}
}

// device returns the entry of "major:minor", nil for what is no device.
func (io *IOStats) device(name string) *DeviceIO {
	major, minor, ok := strings.Cut(name, ":")
	a, err1 := strconv.ParseUint(major, 10, 32)
	b, err2 := strconv.ParseUint(minor, 10, 32)
	if !ok || err1 != nil || err2 != nil {
		return nil
	}
	for i := range io.Devices {
		if io.Devices[i].Major == a && io.Devices[i].Minor == b {
			return &io.Devices[i]
		}
	}
	io.Devices = append(io.Devices, DeviceIO{Major: a, Minor: b})
	return &io.Devices[len(io.Devices)-1]
}
