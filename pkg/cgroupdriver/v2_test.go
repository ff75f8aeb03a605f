package cgroupdriver

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// fake is a v2 tree of plain files: this shows what is read and written, not what the kernel makes of it.
func fake(t *testing.T, files map[string]string) *cgroupfs {
	t.Helper()
	writeFlags |= os.O_TRUNC // plain files
	t.Cleanup(func() { writeFlags &^= os.O_TRUNC })
	root := t.TempDir()
	for name, text := range files {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return &cgroupfs{layout: &layout{v2: true, unified: root}, log: slog.New(slog.DiscardHandler), parent: "/cri-server", owner: "test",
		hierarchy: map[string]string{}}
}

func TestPlanV2(t *testing.T) {
	files := map[string]string{
		"c/cpu.max": "20000 100000\n", "c/memory.current": "1000000\n", "c/memory.swap.max": "max\n",
		"c/io.weight": "default 100\n", "c/hugetlb.2MB.max": "max\n", "c/hugetlb.2MB.rsvd.max": "max\n",
	}
	dev := func(rate uint64) []specs.LinuxThrottleDevice {
		d := specs.LinuxThrottleDevice{Rate: rate}
		d.Major, d.Minor = 8, 16
		return []specs.LinuxThrottleDevice{d}
	}
	for _, c := range []struct {
		name string
		res  *specs.LinuxResources
		want string // "file=value; ..."
		err  error
	}{
		{"nil", nil, "", nil},
		{"zero", &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: p(uint64(0)), Quota: p(int64(0))}}, "", nil},
		{"shares 2", &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: p(uint64(2))}}, "cpu.weight=1", nil},
		{"shares 1024", &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: p(uint64(1024))}}, "cpu.weight=100", nil},
		{"quota and period", &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: p(int64(5000)), Period: p(uint64(10000))}}, "cpu.max=5000 10000", nil},
		{"quota alone", &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: p(int64(5000))}}, "cpu.max=5000", nil},
		{"no quota", &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: p(int64(-1))}}, "cpu.max=max", nil},
		{"period keeps quota", &specs.LinuxResources{CPU: &specs.LinuxCPU{Period: p(uint64(50000))}}, "cpu.max=20000 50000", nil},
		{"cpuset", &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "0-1", Mems: "0"}}, "cpuset.cpus=0-1; cpuset.mems=0", nil},
		{"realtime", &specs.LinuxResources{CPU: &specs.LinuxCPU{RealtimeRuntime: p(int64(1))}}, "", errdefs.ErrNotImplemented},
		{"memory without swap", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: p(int64(2000000)), Swap: p(int64(2000000))}}, "memory.swap.max=0; memory.max=2000000", nil},
		{"memory with swap", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: p(int64(2000000)), Swap: p(int64(5000000))}}, "memory.swap.max=3000000; memory.max=2000000", nil},
		{"unlimited", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: p(int64(-1))}}, "memory.swap.max=max; memory.max=max", nil},
		{"swap below memory", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: p(int64(2000000)), Swap: p(int64(1))}}, "", errdefs.ErrInvalidArgument},
		{"swap alone", &specs.LinuxResources{Memory: &specs.LinuxMemory{Swap: p(int64(1))}}, "", errdefs.ErrInvalidArgument},
		{"below usage", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: p(int64(999999))}}, "", errdefs.ErrFailedPrecondition},
		{"reservation", &specs.LinuxResources{Memory: &specs.LinuxMemory{Reservation: p(int64(7))}}, "memory.low=7", nil},
		{"pids", &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: p(int64(-1))}}, "pids.max=max", nil},
		{"io weight", &specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{Weight: p(uint16(1000))}}, "io.weight=10000", nil},
		{"io throttle", &specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{ThrottleReadBpsDevice: dev(100), ThrottleWriteIOPSDevice: dev(0)}}, "io.max=8:16 rbps=100; io.max=8:16 wiops=max", nil},
		{"hugetlb", &specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4}}}, "hugetlb.2MB.max=4; hugetlb.2MB.rsvd.max=4", nil},
		{"hugetlb missing, none wanted", &specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "1GB", Limit: 0}}}, "", nil},
		{"hugetlb missing", &specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "1GB", Limit: 1}}}, "", errdefs.ErrNotImplemented},
		{"unified wins", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: p(int64(2000000)), Swap: p(int64(2000000))},
			Unified: map[string]string{"memory.swap.max": "5", "memory.high": "max", "memory.oom.group": "1"}},
			"memory.swap.max=0; memory.max=2000000; memory.high=max; memory.oom.group=1; memory.swap.max=5", nil},
		{"unified by line", &specs.LinuxResources{Unified: map[string]string{"io.max": "8:0 rbps=1\n8:16 rbps=2\n"}}, "io.max=8:0 rbps=1; io.max=8:16 rbps=2", nil},
		{"unified below usage", &specs.LinuxResources{Unified: map[string]string{"memory.max": "5"}}, "", errdefs.ErrFailedPrecondition},
		{"unified cgroup.kill", &specs.LinuxResources{Unified: map[string]string{"cgroup.kill": "1"}}, "", errdefs.ErrInvalidArgument},
		{"unified path", &specs.LinuxResources{Unified: map[string]string{"memory.max/../../x": "1"}}, "", errdefs.ErrInvalidArgument},
		{"unified dots", &specs.LinuxResources{Unified: map[string]string{"memory...": "1"}}, "", errdefs.ErrInvalidArgument},
		{"unified plain", &specs.LinuxResources{Unified: map[string]string{"tasks": "1"}}, "", errdefs.ErrInvalidArgument},
		{"swappiness", &specs.LinuxResources{Memory: &specs.LinuxMemory{Swappiness: p(uint64(1))}}, "", errdefs.ErrNotImplemented},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := fake(t, files)
			got, err := d.plan(d.dirs("/c"), c.res, true)
			if !errors.Is(err, c.err) {
				t.Fatalf("error %v, want %v", err, c.err)
			}
			var s []string
			for _, e := range got {
				s = append(s, e.file+"="+e.value)
			}
			if strings.Join(s, "; ") != c.want {
				t.Errorf("got  %s\nwant %s", strings.Join(s, "; "), c.want)
			}
		})
	}
}

func TestUpdateV2RollsBack(t *testing.T) {
	d := fake(t, map[string]string{
		"c/cpu.weight": "100\n", "c/cpu.max": "max 100000\n", "c/memory.current": "1\n",
		"c/io.max": "8:0 rbps=5 wbps=max\n", "c/cpuset.cpus": "", "c/memory.max/dir": "",
	})
	res := &specs.LinuxResources{
		CPU:     &specs.LinuxCPU{Shares: p(uint64(2)), Quota: p(int64(1000)), Cpus: "0"},
		Unified: map[string]string{"io.max": "8:0 rbps=7", "memory.max": "9"},
	}
	if err := d.Update(t.Context(), "/c", res); err == nil {
		t.Fatal("a directory took a value")
	}
	for file, want := range map[string]string{"cpu.weight": "100", "cpu.max": "max 100000", "cpuset.cpus": "", "io.max": "8:0 rbps=5 wbps=max"} {
		if got := value(t, filepath.Join(d.unified, "c"), file); got != want {
			t.Errorf("%s is %q, want %q", file, got, want)
		}
	}
	missing := &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: p(int64(5))}}
	if err := d.Update(t.Context(), "/c", missing); !errors.Is(err, errdefs.ErrNotImplemented) || !strings.Contains(err.Error(), "pids") {
		t.Errorf("a controller that is off: %v", err)
	}
}

func TestPreviousOfDevices(t *testing.T) {
	d := fake(t, map[string]string{
		"c/io.max": "8:0 rbps=5 wbps=max\n", "c/blkio.throttle.read_bps_device": "8:0 77\n", "c/io.weight": "default 100\n8:0 50\n",
		"c/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
	})
	dir := filepath.Join(d.unified, "c")
	for _, c := range []struct{ file, value, want string }{
		{"io.max", "8:0 wiops=3", "8:0 rbps=5 wbps=max"},
		{"io.max", "8:16 wiops=3", "8:16 wiops=max"},
		{"blkio.throttle.read_bps_device", "8:0 5", "8:0 77"},
		{"blkio.throttle.read_bps_device", "8:16 5", "8:16 0"},
		{"io.weight", "200", "100"},
		{"io.weight", "8:0 200", "8:0 50"},
		{"io.weight", "8:16 200", "8:16 default"},
		{"memory.oom_control", "1", "0"},
	} {
		if got, ok := previous(setting{dir, c.file, c.value}); !ok || got.value != c.want {
			t.Errorf("%s %s: %q, want %q", c.file, c.value, got.value, c.want)
		}
	}
	if _, ok := previous(setting{dir, "memory.reclaim", "1"}); ok {
		t.Error("a file that is not there has a previous value")
	}
}

func TestEnableControllers(t *testing.T) {
	d := fake(t, map[string]string{
		"cgroup.controllers": "cpuset cpu io memory pids misc\n", "cgroup.subtree_control": "cpu\n",
		"pods/cgroup.subtree_control":     "cpuset cpu io memory pids\n",
		"pods/pod/cgroup.subtree_control": "cpuset cpu io memory\n",
	})
	d.enable("/pods/pod")
	if got := value(t, d.unified+"/pods/pod", "cgroup.subtree_control"); got != "+pids" {
		t.Errorf("wrote %q to the pod's, want what was missing", got)
	}
	if got := value(t, d.unified+"/pods", "cgroup.subtree_control"); got != "cpuset cpu io memory pids" {
		t.Errorf("wrote %q where nothing was missing", got)
	}
}

func TestStatsV2(t *testing.T) {
	d := fake(t, map[string]string{
		"c/cpu.stat":            "usage_usec 300\nuser_usec 200\nsystem_usec 100\nnr_periods 9\nnr_throttled 4\nthrottled_usec 55\n",
		"c/cpu.pressure":        "some avg10=1.50 avg60=2.00 avg300=3.00 total=7\nfull avg10=0.00 avg60=0.00 avg300=0.25 total=1\n",
		"c/memory.stat":         "anon 100\nfile 50\nkernel 60\nfile_mapped 10\nactive_file 40\ninactive_file 30\npgfault 5\npgmajfault 2\n",
		"c/memory.current":      "200\n",
		"c/memory.max":          "1000\n",
		"c/memory.peak":         "400\n",
		"c/memory.events":       "low 0\nhigh 3\nmax 6\noom 1\noom_kill 1\n",
		"c/memory.swap.current": "20\n",
		"c/memory.swap.max":     "60\n",
		"c/pids.current":        "3\n",
		"c/pids.max":            "max\n",
		"c/io.stat":             "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n8:16\n",
		"c/io.pressure":         "",
	})
	got, err := d.Stats("/c")
	if err != nil {
		t.Fatal(err)
	}
	want := &Stats{
		Time: got.Time,
		CPU: &CPUStats{Usage: 300000, User: 200000, System: 100000, Periods: 9, ThrottledPeriods: 4, ThrottledTime: 55000,
			PSI: &PSI{Some: PSILine{1.5, 2, 3, 7000}, Full: PSILine{0, 0, 0.25, 1000}}},
		Memory: &MemoryStats{Usage: 200, WorkingSet: 170, RSS: 100, Cache: 50, MappedFile: 10, ActiveFile: 40, InactiveFile: 30, Kernel: 60, Available: p(uint64(830)), Limit: 1000,
			MaxUsage: 400, PageFaults: 5, MajorPageFaults: 2, FailCount: 6, OOMKills: 1, EventsHigh: 3, EventsMax: 6},
		Swap: &SwapStats{Usage: 20, Available: p(uint64(40))},
		Pids: &PidsStats{Current: 3},
		IO:   &IOStats{Devices: []DeviceIO{{8, 0, 1, 2, 3, 4}}, PSI: &PSI{}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	bare := fake(t, map[string]string{"c/cpu.stat": "usage_usec 1\n"})
	if s, err := bare.Stats("/c"); err != nil || s.Memory != nil || s.Pids != nil || s.IO != nil || s.Swap != nil {
		t.Errorf("without controllers: %+v, %v", s, err)
	}
}

func TestStatsV1(t *testing.T) {
	files := map[string]string{
		"c/cpuacct.usage": "300\n", "c/cpuacct.usage_user": "200\n", "c/cpuacct.usage_sys": "100\n",
		"c/cpu.stat":                    "nr_periods 9\nnr_throttled 4\nthrottled_time 55\n",
		"c/memory.stat":                 "cache 1\nrss 1\ninactive_file 1\ntotal_cache 50\ntotal_rss 100\ntotal_mapped_file 10\ntotal_active_file 40\ntotal_inactive_file 30\ntotal_pgfault 5\ntotal_pgmajfault 2\ntotal_swap 20\n",
		"c/memory.usage_in_bytes":       "20\n",
		"c/memory.limit_in_bytes":       "9223372036854771712\n",
		"c/memory.max_usage_in_bytes":   "400\n",
		"c/memory.failcnt":              "6\n",
		"c/memory.memsw.failcnt":        "1\n",
		"c/memory.memsw.limit_in_bytes": "9223372036854771712\n",
		"c/memory.oom_control":          "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
		"c/pids.current":                "3\n", "c/pids.max": "10\n",
		"c/blkio.throttle.io_service_bytes_recursive": "8:0 Read 1\n8:0 Write 2\n8:0 Sync 9\n8:0 Total 3\nTotal 3\n",
		"c/blkio.throttle.io_serviced_recursive":      "8:0 Read 3\n8:0 Write 4\nTotal 7\n",
	}
	d := fake(t, files)
	root := d.unified
	d.layout = &layout{v1: map[string]string{"all": root}}
	for _, c := range []string{"cpu", "cpuacct", "memory", "pids", "blkio"} {
		d.hierarchy[c] = "all"
	}
	got, err := d.Stats("/c")
	if err != nil {
		t.Fatal(err)
	}
	want := &Stats{
		Time: got.Time,
		CPU:  &CPUStats{Usage: 300, User: 200, System: 100, Periods: 9, ThrottledPeriods: 4, ThrottledTime: 55},
		// More inactive file pages than usage: the two are not read at one instant.
		Memory: &MemoryStats{Usage: 20, WorkingSet: 0, RSS: 100, Cache: 50, MappedFile: 10, ActiveFile: 40, InactiveFile: 30, MaxUsage: 400, PageFaults: 5, MajorPageFaults: 2,
			FailCount: 7, OOMKills: 2, EventsMax: 7},
		Swap: &SwapStats{Usage: 20},
		Pids: &PidsStats{Current: 3, Limit: 10},
		IO:   &IOStats{Devices: []DeviceIO{{8, 0, 1, 2, 3, 4}}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestParsePSIRefusesGarbage(t *testing.T) {
	for _, bad := range []string{"some avg10=x", "full total=-1"} {
		if _, err := parsePSI([]byte(bad)); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
