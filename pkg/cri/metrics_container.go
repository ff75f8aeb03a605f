package cri

import (
	"strconv"
	"time"

	"github.com/seed-9a14075a/cri-server/pkg/cgroupdriver"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore"
	"github.com/seed-9a14075a/cri-server/pkg/runtime"
)

// reading is everything that was read of one running container. What could not be read is nil, and its metrics are left
// out.
type reading struct {
	ctr       *runtime.Container
	stats     *cgroupdriver.Stats
	version   int // of cgroups
	processes *processes
	layer     *imagestore.Usage
	layerFS   *filesystem
	devices   []deviceIO
}

// deviceIO is the I/O on one block device.
type deviceIO struct {
	cgroupdriver.DeviceIO
	name string // /dev/sda
}

// one adds the single value of a metric without labels of its own.
func one(to []value, n uint64) []value { return append(to, value{n: n}) }

func always(f func(*reading) uint64) func([]value, *reading) []value {
	return func(to []value, r *reading) []value { return one(to, f(r)) }
}

func ofCPU(f func(*cgroupdriver.CPUStats) uint64) func([]value, *reading) []value {
	return func(to []value, r *reading) []value {
		if r.stats.CPU == nil {
			return to
		}
		return one(to, f(r.stats.CPU))
	}
}

func ofMemory(f func(*cgroupdriver.MemoryStats) uint64) func([]value, *reading) []value {
	return func(to []value, r *reading) []value {
		if r.stats.Memory == nil {
			return to
		}
		return one(to, f(r.stats.Memory))
	}
}

func ofProcesses(f func(*processes) uint64) func([]value, *reading) []value {
	return func(to []value, r *reading) []value {
		if r.processes == nil {
			return to
		}
		return one(to, f(r.processes))
	}
}

func ofPids(f func(*cgroupdriver.PidsStats) uint64) func([]value, *reading) []value {
	return func(to []value, r *reading) []value {
		if r.stats.Pids == nil {
			return to
		}
		return one(to, f(r.stats.Pids))
	}
}

func ofDevices(f func(*deviceIO) uint64) func([]value, *reading) []value {
	return func(to []value, r *reading) []value {
		for i := range r.devices {
			d := &r.devices[i]
			to = append(to, value{n: f(d), labels: []string{d.name}})
		}
		return to
	}
}

// blkio has a value for each device and direction.
func blkio(to []value, r *reading) []value {
	for i := range r.devices {
		d := &r.devices[i]
		major, minor := strconv.FormatUint(d.Major, 10), strconv.FormatUint(d.Minor, 10)
		to = append(to,
			value{n: d.ReadBytes, labels: []string{d.name, major, minor, "Read"}},
			value{n: d.WriteBytes, labels: []string{d.name, major, minor, "Write"}})
	}
	return to
}

// ofFilesystem is about the file system of the writable layer.
func ofFilesystem(f func(*filesystem) uint64) func([]value, *reading) []value {
	return func(to []value, r *reading) []value {
		if r.layerFS == nil {
			return to
		}
		return append(to, value{n: f(r.layerFS), labels: []string{r.layerFS.device}})
	}
}

// layerBytes is not measured now: see runtime.MeasureLayers.
func layerBytes(to []value, r *reading) []value {
	if r.layer == nil || r.layerFS == nil {
		return to
	}
	return append(to, value{n: r.layer.Bytes, labels: []string{r.layerFS.device}, taken: r.layer.Time.UnixNano()})
}

// pageFaultLabels are the labels of page faults and major page faults in either scope.
var pageFaultLabels = [2][2][]string{
	{{"pgfault", "container"}, {"pgmajfault", "container"}}, {{"pgfault", "hierarchy"}, {"pgmajfault", "hierarchy"}},
}

// pageFaults: a container's cgroup and those below it are counted as one.
func pageFaults(to []value, r *reading) []value {
	m := r.stats.Memory
	if m == nil {
		return to
	}
	for i := range pageFaultLabels {
		l := &pageFaultLabels[i]
		to = append(to, value{n: m.PageFaults, labels: l[0]}, value{n: m.MajorPageFaults, labels: l[1]})
	}
	return to
}

func pressure(get func(*cgroupdriver.Stats) *cgroupdriver.PSI, line func(*cgroupdriver.PSI) uint64) func([]value, *reading) []value {
	return func(to []value, r *reading) []value {
		psi := get(r.stats)
		if psi == nil {
			return to
		}
		return one(to, seconds(line(psi)))
	}
}

func waiting(p *cgroupdriver.PSI) uint64 { return p.Some.Total }
func stalled(p *cgroupdriver.PSI) uint64 { return p.Full.Total }

func cpuPressure(s *cgroupdriver.Stats) *cgroupdriver.PSI {
	if s.CPU == nil {
		return nil
	}
	return s.CPU.PSI
}

func memoryPressure(s *cgroupdriver.Stats) *cgroupdriver.PSI {
	if s.Memory == nil {
		return nil
	}
	return s.Memory.PSI
}

func ioPressure(s *cgroupdriver.Stats) *cgroupdriver.PSI {
	if s.IO == nil {
		return nil
	}
	return s.IO.PSI
}

func swap(to []value, r *reading) []value {
	if r.stats.Swap == nil {
		return one(to, 0) // the node has no swap, or does not count it
	}
	return one(to, r.stats.Swap.Usage)
}

// swapLimit is of swap alone on v2 and of memory and swap together on v1, as the kernel has it; 0 is none.
func swapLimit(r *reading) uint64 {
	sw := r.stats.Swap
	if sw == nil || sw.Available == nil {
		return 0
	}
	limit := sw.Usage + *sw.Available
	if r.version == 1 && r.stats.Memory != nil {
		limit += r.stats.Memory.Limit
	}
	return limit
}

// memoryReservation is what kubelet's MemoryQoS asks for as memory.high; 0 is none.
func memoryReservation(r *reading) uint64 {
	n, err := strconv.ParseUint(r.ctr.Resources.GetUnified()["memory.high"], 10, 64)
	if err != nil {
		return 0 // not set, or "max"
	}
	return n
}

// orDefault is what the kernel uses where nothing was asked for.
func orDefault(asked int64, otherwise uint64) uint64 {
	if asked <= 0 {
		return otherwise
	}
	return uint64(asked)
}

func lastSeen(r *reading) uint64 { return uint64(r.stats.Time.Unix()) }

func unixTime(t time.Time) uint64 {
	if t.IsZero() {
		return 0
	}
	return uint64(t.Unix())
}
