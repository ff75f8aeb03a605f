package runtime

import (
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/pkg/cgroupdriver"
)

// Stats reads a container's resource usage from its cgroup and its writable layer. For a container that does not run
// only the writable layer is told.
func (c *Containers) Stats(ctr *Container) *runtimeapi.ContainerStats {
	s := &runtimeapi.ContainerStats{Attributes: &runtimeapi.ContainerAttributes{
		Id: ctr.ID, Metadata: ctr.Config.GetMetadata(), Labels: ctr.Config.GetLabels(), Annotations: ctr.Config.GetAnnotations(),
	}}
	if usage, err := c.cfg.Images.SnapshotUsage(ctr.ID); err == nil {
		s.WritableLayer = &runtimeapi.FilesystemUsage{
			Timestamp: usage.Time.UnixNano(), FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: usage.Mountpoint},
			UsedBytes: &runtimeapi.UInt64Value{Value: usage.Bytes}, InodesUsed: &runtimeapi.UInt64Value{Value: usage.Inodes},
		}
	}
	if ctr.State != Running && ctr.State != Created {
		return s
	}
	st, err := c.cfg.Cgroups.Stats(ctr.CgroupPath)
	if err != nil {
		return s // it has ended this moment
	}
	s.Cpu, s.Memory, s.Swap, s.Io = CPU(st), Memory(st), Swap(st), IO(st)
	if s.Cpu != nil {
		s.Cpu.UsageNanoCores = u64(c.rates.nanoCores(ctr.ID, st))
	}
	return s
}

func u64(v uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: v} }

// CPU translates a cgroup's reading; nil where there is none. usage_nano_cores is left out.
func CPU(st *cgroupdriver.Stats) *runtimeapi.CpuUsage {
	if st.CPU == nil {
		return nil
	}
	return &runtimeapi.CpuUsage{Timestamp: st.Time.UnixNano(), UsageCoreNanoSeconds: u64(st.CPU.Usage), Psi: psi(st.CPU.PSI)}
}

// Memory translates a cgroup's reading; nil where there is none.
func Memory(st *cgroupdriver.Stats) *runtimeapi.MemoryUsage {
	m := st.Memory
	if m == nil {
		return nil
	}
	u := &runtimeapi.MemoryUsage{
		Timestamp: st.Time.UnixNano(), WorkingSetBytes: u64(m.WorkingSet), UsageBytes: u64(m.Usage), RssBytes: u64(m.RSS),
		PageFaults: u64(m.PageFaults), MajorPageFaults: u64(m.MajorPageFaults), Psi: psi(m.PSI),
	}
	if m.Available != nil {
		u.AvailableBytes = u64(*m.Available)
	}
	return u
}

// Swap translates a cgroup's reading; nil where there is none.
func Swap(st *cgroupdriver.Stats) *runtimeapi.SwapUsage {
	if st.Swap == nil {
		return nil
	}
	u := &runtimeapi.SwapUsage{Timestamp: st.Time.UnixNano(), SwapUsageBytes: u64(st.Swap.Usage)}
	if st.Swap.Available != nil {
		u.SwapAvailableBytes = u64(*st.Swap.Available)
	}
	return u
}

// IO translates a cgroup's reading; nil where there is no pressure information.
func IO(st *cgroupdriver.Stats) *runtimeapi.IoUsage {
	if st.IO == nil || st.IO.PSI == nil {
		return nil
	}
	return &runtimeapi.IoUsage{Timestamp: st.Time.UnixNano(), Psi: psi(st.IO.PSI)}
}

func psi(p *cgroupdriver.PSI) *runtimeapi.PsiStats {
	if p == nil {
		return nil
	}
	line := func(l cgroupdriver.PSILine) *runtimeapi.PsiData {
		return &runtimeapi.PsiData{Total: l.Total, Avg10: l.Avg10, Avg60: l.Avg60, Avg300: l.Avg300}
	}
	return &runtimeapi.PsiStats{Some: line(p.Some), Full: line(p.Full)}
}

// NanoCores is the CPU usage of a cgroup since it was last asked for under the same name, in 1e-9 cores.
func (c *Containers) NanoCores(name string, st *cgroupdriver.Stats) uint64 {
	return c.rates.nanoCores(name, st)
}

// minRateInterval is the shortest time over which a rate is taken; kubelet, crictl and others may all ask at once.
const minRateInterval = 500 * time.Millisecond

// rates turns the counters of CPU usage into rates.
type rates struct {
	mu   sync.Mutex
	last map[string]sample
}

type sample struct {
	at    time.Time
	usage uint64
	rate  uint64
}

func (r *rates) nanoCores(id string, st *cgroupdriver.Stats) uint64 {
	if st.CPU == nil {
		return 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last == nil {
		r.last = map[string]sample{}
	}
	old, ok := r.last[id]
	now := sample{at: st.Time, usage: st.CPU.Usage}
	d := now.at.Sub(old.at)
	switch {
	case !ok:
	case d < minRateInterval:
		return old.rate
	case now.usage >= old.usage:
		now.rate = uint64(float64(now.usage-old.usage) / d.Seconds())
	}
	r.last[id] = now
	return now.rate
}

func (r *rates) forget(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.last, id)
}
