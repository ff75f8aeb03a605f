package cgroupdriver

import (
	"errors"
	"os"
	"slices"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestCreateWritesLimits(t *testing.T) {
	d := v1(t, "cpu", "memory", "pids", "cpuset", "blkio")
	_, cg := create(t, d, &specs.LinuxResources{
		CPU:            &specs.LinuxCPU{Shares: p(uint64(512)), Quota: p(int64(20000)), Period: p(uint64(50000)), Cpus: "0"},
		Memory:         &specs.LinuxMemory{Limit: p(int64(64 << 20)), Swap: p(int64(96 << 20)), Reservation: p(int64(32 << 20))},
		Pids:           &specs.LinuxPids{Limit: p(int64(77))},
		HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 0}},
	})
	for _, c := range []struct{ controller, file, want string }{
		{"cpu", "cpu.shares", "512"}, {"cpu", "cpu.cfs_quota_us", "20000"}, {"cpu", "cpu.cfs_period_us", "50000"},
		{"cpuset", "cpuset.cpus", "0"}, {"cpuset", "cpuset.mems", "0"},
		{"memory", "memory.limit_in_bytes", "67108864"}, {"memory", "memory.memsw.limit_in_bytes", "100663296"},
		{"memory", "memory.soft_limit_in_bytes", "33554432"}, {"pids", "pids.max", "77"},
	} {
		if got := value(t, cg.V1[d.hierarchy[c.controller]], c.file); got != c.want {
			t.Errorf("%s is %q, want %q", c.file, got, c.want)
		}
	}
	for _, dir := range all(cg) {
		if _, err := os.Stat(dir); err != nil {
			t.Error(err)
		}
	}
}

func TestMemoryLimitKills(t *testing.T) {
	d := needs(t, "memory")
	path, cg := create(t, d, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: p(int64(8 << 20)), Swap: p(int64(8 << 20))}})
	hog, release, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer hog.Close()
	c := spawnWith(t, cg, hog, "read go; exec dd if=/dev/zero of=/dev/null bs=64M count=1 2>/dev/null")
	until(t, "the process to join", func() bool { return joined(d, path, c) })
	d.Settle(path, c.Process.Pid)
	release.Close()
	err = c.Wait()
	if ws, ok := c.ProcessState.Sys().(syscall.WaitStatus); !ok || ws.Signal() != syscall.SIGKILL {
		t.Errorf("dd ended with %v, want SIGKILL", err)
	}
	s, err := d.Stats(path)
	if err != nil {
		t.Fatal(err)
	}
	if s.Memory.OOMKills != 1 || s.Memory.Limit != 8<<20 {
		t.Errorf("stats %+v", *s.Memory)
	}
}

func TestPidsLimitHoldsForkBomb(t *testing.T) {
	d := needs(t, "pids")
	path, cg := create(t, d, &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: p(int64(10))}})
	c := spawn(t, cg, "exec 2>/dev/null; while :; do sleep 100 & done")
	until(t, "the limit", func() bool { s, err := d.Stats(path); return err == nil && s.Pids.Current >= 9 })
	s, err := d.Stats(path)
	if err != nil || s.Pids.Current > 10 || s.Pids.Limit != 10 {
		t.Errorf("pids %+v, %v", s.Pids, err)
	}
	if err := d.Kill(t.Context(), path); err != nil {
		t.Error(err)
	}
	_ = c.Wait()
	if left, err := d.processes(path); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func TestCPUQuotaHoldsBurner(t *testing.T) {
	d := needs(t, "cpu", "cpuacct")
	path, cg := create(t, d, &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: p(int64(2000)), Period: p(uint64(20000))}})
	spawn(t, cg, "while :; do :; done")
	var first, last *Stats
	until(t, "throttling", func() bool {
		s, err := d.Stats(path)
		if err != nil {
			t.Fatal(err)
		}
		if first == nil && s.CPU.ThrottledPeriods > 0 {
			first = s
		}
		last = s
		// The time is counted when it is over, which on an emulated CPU may take many periods.
		return first != nil && s.CPU.ThrottledPeriods >= first.CPU.ThrottledPeriods+20 && s.CPU.ThrottledTime > first.CPU.ThrottledTime
	})
	share := float64(last.CPU.Usage-first.CPU.Usage) / float64(last.Time.Sub(first.Time))
	if share > 0.3 || last.CPU.ThrottledTime == 0 || last.CPU.User+last.CPU.System == 0 {
		t.Errorf("used %.2f of a CPU with a limit of 0.1; %+v", share, *last.CPU)
	}
	if err := d.Freeze(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	a, err := d.Stats(path)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := d.Stats(path); err != nil || b.CPU.Usage != a.CPU.Usage {
		t.Errorf("runs while frozen: %v", err)
	}
	if err := d.Thaw(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	until(t, "running again", func() bool { s, err := d.Stats(path); return err == nil && s.CPU.Usage > a.CPU.Usage })
}

func TestUpdateV1(t *testing.T) {
	d := v1(t, "cpu", "memory", "cpuset")
	path, cg := create(t, d, &specs.LinuxResources{
		CPU:    &specs.LinuxCPU{Shares: p(uint64(100)), Quota: p(int64(50000)), Period: p(uint64(100000))},
		Memory: &specs.LinuxMemory{Limit: p(int64(64 << 20)), Swap: p(int64(64 << 20))},
	})
	cpu, mem := cg.V1[d.hierarchy["cpu"]], cg.V1[d.hierarchy["memory"]]
	const none = "9223372036854771712"
	memory := func(limit, swap int64) *specs.LinuxResources {
		return &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit, Swap: &swap}}
	}
	quota := func(quota int64, period uint64) *specs.LinuxResources {
		return &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: &quota, Period: &period}}
	}
	badSet := quota(1000, 2000)
	badSet.CPU.Shares, badSet.CPU.Cpus = p(uint64(900)), "4000"
	badSwap := memory(64<<20, 1<<20)
	badSwap.CPU = &specs.LinuxCPU{Shares: p(uint64(900))}
	for _, step := range []struct {
		name string
		res  *specs.LinuxResources
		err  error
		want []string // shares, quota, period, memory, memory+swap
	}{
		{"zero fields", &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: p(uint64(0))}, Memory: &specs.LinuxMemory{Limit: p(int64(0))}}, nil, []string{"100", "50000", "100000", "67108864", "67108864"}},
		{"nil", nil, nil, []string{"100", "50000", "100000", "67108864", "67108864"}},
		{"memory up", memory(128<<20, 128<<20), nil, []string{"100", "50000", "100000", "134217728", "134217728"}},
		{"memory down", memory(32<<20, 32<<20), nil, []string{"100", "50000", "100000", "33554432", "33554432"}},
		{"short period", quota(5000, 10000), nil, []string{"100", "5000", "10000", "33554432", "33554432"}},
		{"long period", quota(500000, 1000000), nil, []string{"100", "500000", "1000000", "33554432", "33554432"}},
		{"bad cpuset", badSet, errdefs.ErrInvalidArgument, []string{"100", "500000", "1000000", "33554432", "33554432"}},
		{"swap below memory", badSwap, errdefs.ErrInvalidArgument, []string{"100", "500000", "1000000", "33554432", "33554432"}},
		{"no quota", quota(-1, 0), nil, []string{"100", "-1", "1000000", "33554432", "33554432"}},
		{"unlimited memory", memory(-1, 0), nil, []string{"100", "-1", "1000000", none, none}},
		{"unified", &specs.LinuxResources{Unified: map[string]string{"memory.high": "max"}}, errdefs.ErrNotImplemented, []string{"100", "-1", "1000000", none, none}},
		{"device rules", &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{}}}, errdefs.ErrNotImplemented, []string{"100", "-1", "1000000", none, none}},
		{"missing hugetlb", &specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "64GB", Limit: 1}}}, errdefs.ErrNotImplemented, []string{"100", "-1", "1000000", none, none}},
		{"bad page size", &specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "../2MB", Limit: 0}}}, errdefs.ErrInvalidArgument, []string{"100", "-1", "1000000", none, none}},
		{"rdma", &specs.LinuxResources{Rdma: map[string]specs.LinuxRdma{"x": {}}}, errdefs.ErrNotImplemented, []string{"100", "-1", "1000000", none, none}},
	} {
		t.Run(step.name, func(t *testing.T) {
			if err := d.Update(t.Context(), path, step.res); !errors.Is(err, step.err) {
				t.Fatalf("error %v, want %v", err, step.err)
			}
			got := []string{value(t, cpu, "cpu.shares"), value(t, cpu, "cpu.cfs_quota_us"), value(t, cpu, "cpu.cfs_period_us"),
				value(t, mem, "memory.limit_in_bytes"), value(t, mem, "memory.memsw.limit_in_bytes")}
			if !slices.Equal(got, step.want) {
				t.Errorf("now %v, want %v", got, step.want)
			}
		})
	}
	if err := d.Update(t.Context(), path+"x", &specs.LinuxResources{}); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("missing cgroup: %v", err)
	}
}

func TestDevices(t *testing.T) {
	rules := []specs.LinuxDeviceCgroup{
		{Allow: false, Access: "rwm"},
		{Allow: true, Type: "c", Major: p(int64(1)), Minor: p(int64(3)), Access: "rwm"},
		{Allow: true, Type: "c", Access: "m"},
	}
	const script = `exec 2>/dev/null; : < /dev/null || exit 3; (: < /dev/zero) && exit 4; exit 0`
	t.Run("v1", func(t *testing.T) {
		d := v1(t, "devices")
		_, cg := create(t, d, &specs.LinuxResources{Devices: rules})
		if got := value(t, cg.V1["devices"], "devices.list"); got != "c 1:3 rwm\nc *:* m" {
			t.Errorf("devices.list is %q", got)
		}
		if err := spawn(t, cg, script).Wait(); err != nil {
			t.Error(err)
		}
	})
	t.Run("v2", func(t *testing.T) {
		d := driver(t)
		if d.unified == "" {
			t.Skip("no cgroup2 mount here")
		}
		_, cg := create(t, d, nil)
		if err := devicesV2(cg.Unified, rules); err != nil {
			t.Fatal(err)
		}
		if err := spawn(t, cg, script).Wait(); err != nil {
			t.Error(err)
		}
	})
	for name, r := range map[string]specs.LinuxDeviceCgroup{
		"type":              {Type: "p", Access: "r"},
		"access":            {Type: "c", Access: "x"},
		"number":            {Type: "c", Major: p(int64(-5)), Access: "r"},
		"all with a number": {Type: "a", Major: p(int64(5)), Access: "rwm"},
		"all but not all":   {Access: "r"},
	} {
		if _, err := deviceRule(r); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("bad %s: %v", name, err)
		}
	}
}
