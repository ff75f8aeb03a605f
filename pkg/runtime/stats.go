package runtime

import (
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/pkg/cgroupdriver"
)

// Stats reads a container's resource usage from its cgroup; of its writable layer it tells what MeasureLayers has found.
// The second result is the reading itself, nil for a container that does not run.
func (c *Containers) Stats(ctr *Container) (*runtimeapi.ContainerStats, *cgroupdriver.Stats) {
	s := &runtimeapi.ContainerStats{Attributes: &runtimeapi.ContainerAttributes{
		Id: ctr.ID, Metadata: ctr.Config.GetMetadata(), Labels: ctr.Config.GetLabels(), Annotations: ctr.Config.GetAnnotations(),
	}}
	if usage, ok := c.LayerUsage(ctr.ID); ok {
		s.WritableLayer = &runtimeapi.FilesystemUsage{
			Timestamp: usage.Time.UnixNano(), FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: usage.Mountpoint},
			UsedBytes: u64(usage.Bytes), InodesUsed: u64(usage.Inodes),
		}
	}
	if ctr.State != Running && ctr.State != Created {
		return s, nil
	}
	st, err := c.cfg.Cgroups.Usage(ctr.CgroupPath)
	if err != nil {
		return s, nil // it has ended this moment
	}
	s.Cpu, s.Memory, s.Swap, s.Io = CPU(st), Memory(st), Swap(st), IO(st)
	if s.Cpu != nil {
		s.Cpu.UsageNanoCores = u64(c.rates.nanoCores(ctr.ID, ctr.StartedAt, st))
	}
	return s, st
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
