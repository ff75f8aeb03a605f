package cgroupdriver

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

// What the kernel makes of the limits on cgroup v2; v2_test.go shows what is written.

// onV2 skips where the controllers are not on cgroup v2.
func onV2(t *testing.T, controllers ...string) *fixture {
	t.Helper()
	d := driver(t)
	if !d.v2 {
		t.Skip("no cgroup v2 here")
	}
	have := strings.Fields(value(t, d.unified, "cgroup.controllers"))
	for _, c := range controllers {
		if !slices.Contains(have, c) {
			t.Skipf("no v2 %s controller here", c)
		}
	}
	return d
}

// tasks is a limit of processes as the kernel has it: with the systemd driver there is a placeholder more.
func (f *fixture) tasks(n int) string {
	if f.Name() == "systemd" {
		n++
	}
	return strconv.Itoa(n)
}

func TestV2CreateWritesLimits(t *testing.T) {
	d := onV2(t, "cpu", "cpuset", "memory", "pids", "hugetlb")
	_, cg := create(t, d, &specs.LinuxResources{
		CPU:            &specs.LinuxCPU{Shares: p(uint64(512)), Quota: p(int64(20000)), Period: p(uint64(50000)), Burst: p(uint64(5000)), Cpus: "0", Mems: "0"},
		Memory:         &specs.LinuxMemory{Limit: p(int64(64 << 20)), Swap: p(int64(96 << 20)), Reservation: p(int64(32 << 20))},
		Pids:           &specs.LinuxPids{Limit: p(int64(77))},
		HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4 << 20}},
		Unified:        map[string]string{"memory.high": "50331648", "memory.min": "1048576", "memory.oom.group": "1", "memory.swap.high": "20971520"},
	})
	for file, want := range map[string]string{
		"cpu.weight": "59", "cpu.max": "20000 50000", "cpu.max.burst": "5000", "cpuset.cpus": "0", "cpuset.cpus.effective": "0", "cpuset.mems": "0",
		"memory.max": "67108864", "memory.swap.max": "33554432", "memory.low": "33554432", "memory.high": "50331648", "memory.min": "1048576",
		"memory.oom.group": "1", "memory.swap.high": "20971520", "pids.max": d.tasks(77), "hugetlb.2MB.max": "4194304", "hugetlb.2MB.rsvd.max": "4194304",
	} {
		if got := value(t, cg.Unified, file); got != want {
			t.Errorf("%s is %q, want %q", file, got, want)
		}
	}
}

func TestV2Update(t *testing.T) {
	d := onV2(t, "cpu", "cpuset", "memory", "pids")
	path, cg := create(t, d, &specs.LinuxResources{
		CPU:    &specs.LinuxCPU{Shares: p(uint64(100)), Quota: p(int64(50000)), Period: p(uint64(100000))},
		Memory: &specs.LinuxMemory{Limit: p(int64(64 << 20)), Swap: p(int64(64 << 20))},
		Pids:   &specs.LinuxPids{Limit: p(int64(77))},
	})
	// Tmpfs pages are memory that a limit can't reclaim by writing them out.
	c := spawn(t, cg, "head -c 8388608 /dev/zero >"+filepath.Join(shm(t), "x")+"; sleep 100")
	until(t, "memory to be used", func() bool { s, err := d.Stats(path); return err == nil && s.Memory.Usage > 8<<20 })
	d.Settle(path, c.Process.Pid)
	memory := func(limit, swap int64) *specs.LinuxResources {
		return &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit, Swap: &swap}}
	}
	cpu := func(c specs.LinuxCPU) *specs.LinuxResources { return &specs.LinuxResources{CPU: &c} }
	badSet := memory(96<<20, 96<<20)
	badSet.CPU = &specs.LinuxCPU{Shares: p(uint64(900)), Cpus: "4000"}
	now := []string{"17", "50000 100000", "67108864", "0", "max", "77"}
	for _, step := range []struct {
		name string
		res  *specs.LinuxResources
		err  error
		set  map[int]string // what changes of weight, cpu.max, memory.max, memory.swap.max, memory.high, pids
	}{
		{"zero fields", &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: p(uint64(0))}, Memory: &specs.LinuxMemory{Limit: p(int64(0))}}, nil, nil},
		{"nil", nil, nil, nil},
		{"memory up", memory(128<<20, 128<<20), nil, map[int]string{2: "134217728"}},
		{"memory and swap", memory(32<<20, 48<<20), nil, map[int]string{2: "33554432", 3: "16777216"}},
		{"below usage", memory(1<<20, 1<<20), errdefs.ErrFailedPrecondition, nil},
		{"shares", cpu(specs.LinuxCPU{Shares: p(uint64(2048))}), nil, map[int]string{0: "174"}},
		{"short period", cpu(specs.LinuxCPU{Quota: p(int64(5000)), Period: p(uint64(10000))}), nil, map[int]string{1: "5000 10000"}},
		{"quota alone", cpu(specs.LinuxCPU{Quota: p(int64(7123))}), nil, map[int]string{1: "7123 10000"}},
		{"no quota", cpu(specs.LinuxCPU{Quota: p(int64(-1))}), nil, map[int]string{1: "max 10000"}},
		{"bad cpuset", badSet, errdefs.ErrInvalidArgument, nil},
		{"pids", &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: p(int64(88))}}, nil, map[int]string{5: "88"}},
		{"unified", &specs.LinuxResources{Unified: map[string]string{"memory.high": "20971520"}}, nil, map[int]string{4: "20971520"}},
		{"unified bad value", &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: p(uint64(5))}, Unified: map[string]string{"memory.high": "many"}}, errdefs.ErrInvalidArgument, nil},
		{"unknown file", &specs.LinuxResources{Unified: map[string]string{"memory.nothing": "1"}}, errdefs.ErrNotImplemented, nil},
		{"unlimited memory", memory(-1, 0), nil, map[int]string{2: "max", 3: "max"}},
	} {
		t.Run(step.name, func(t *testing.T) {
			if err := d.Update(t.Context(), path, step.res); !errors.Is(err, step.err) {
				t.Fatalf("error %v, want %v", err, step.err)
			}
			for i, v := range step.set {
				now[i] = v
			}
			want := slices.Clone(now)
			n, _ := strconv.Atoi(want[5])
			want[5] = d.tasks(n)
			var got []string
			for _, f := range []string{"cpu.weight", "cpu.max", "memory.max", "memory.swap.max", "memory.high", "pids.max"} {
				got = append(got, value(t, cg.Unified, f))
			}
			if !slices.Equal(got, want) {
				t.Errorf("now %v, want %v", got, want)
			}
		})
	}
	if ev := value(t, cg.Unified, "memory.events"); !strings.Contains(ev, "oom_kill 0") {
		t.Errorf("an update has killed: %s", ev)
	}
}

// shm is a tmpfs directory.
func shm(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/run", "cgroupdriver")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// TestV2OOMGroup is what kubelet asks for: all processes of a container die together, and the reason can still be read.
func TestV2OOMGroup(t *testing.T) {
	d := onV2(t, "memory")
	path, cg := create(t, d, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: p(int64(16 << 20)), Swap: p(int64(16 << 20))},
		Unified: map[string]string{"memory.oom.group": "1"}})
	hog, release, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer hog.Close()
	c := spawnWith(t, cg, hog, "sleep 100 & read go; dd if=/dev/zero of=/dev/null bs=64M count=1 2>/dev/null; sleep 100")
	until(t, "the processes to join", func() bool { pids, err := d.Pids(path); return err == nil && len(pids) == 2 })
	d.Settle(path, c.Process.Pid)
	release.Close()
	err = c.Wait()
	if ws, ok := c.ProcessState.Sys().(syscall.WaitStatus); !ok || ws.Signal() != syscall.SIGKILL {
		t.Errorf("the shell ended with %v, want SIGKILL", err)
	}
	if d.Name() == "systemd" {
		systemctl(t, "daemon-reload") // whatever systemd had to do, it has done now
	}
	until(t, "the processes to go", func() bool { pids, err := d.Pids(path); return err == nil && len(pids) == 0 })
	s, err := d.Stats(path)
	if err != nil {
		t.Fatal(err)
	}
	if s.Memory.OOMKills < 3 { // the kernel counts the first twice
		t.Errorf("%d were killed, want the shell, sleep and dd: %s", s.Memory.OOMKills, value(t, cg.Unified, "memory.events"))
	}
}

func TestV2MemoryHigh(t *testing.T) {
	d := onV2(t, "memory")
	path, cg := create(t, d, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: p(int64(64 << 20)), Swap: p(int64(64 << 20))},
		Unified: map[string]string{"memory.high": "4194304"}})
	file := filepath.Join(t.TempDir(), "x")
	c := spawn(t, cg, "dd if=/dev/zero of="+file+" bs=1M count=12 2>/dev/null")
	d.Settle(path, c.Process.Pid)
	if err := c.Wait(); err != nil {
		t.Fatal(err)
	}
	s, err := d.Stats(path)
	if err != nil {
		t.Fatal(err)
	}
	// What the page cache of the file takes can be reclaimed, so nobody is killed.
	if m := s.Memory; m.EventsHigh == 0 || m.OOMKills != 0 || m.Usage > 8<<20 {
		t.Errorf("%+v", *m)
	}
}

func TestV2Cpuset(t *testing.T) {
	d := onV2(t, "cpuset")
	if !strings.ContainsAny(value(t, d.unified, "cpuset.cpus.effective"), "-,") {
		t.Skip("one CPU only")
	}
	path, cg := create(t, d, &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "1"}})
	c := spawn(t, cg, "sleep 100")
	until(t, "the process to join", func() bool { return joined(d, path, c) })
	allowed := func() string { return value(t, fmt.Sprintf("/proc/%d", c.Process.Pid), "status") }
	if !strings.Contains(allowed(), "Cpus_allowed_list:\t1\n") {
		t.Errorf("not on CPU 1 alone:\n%s", allowed())
	}
	if err := d.Update(t.Context(), path, &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "0"}}); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(allowed(), "Cpus_allowed_list:\t0\n") {
		t.Errorf("not on CPU 0 alone:\n%s", allowed())
	}
}

// device is the disk below a directory.
func device(t *testing.T, dir string) (major, minor int64) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	if unix.Major(st.Dev) == 0 {
		t.Skip("the temporary directory is on no disk")
	}
	return int64(unix.Major(st.Dev)), int64(unix.Minor(st.Dev))
}

func TestV2IO(t *testing.T) {
	d := onV2(t, "io")
	dir := t.TempDir()
	major, minor := device(t, dir)
	const rate = 1 << 20
	throttle := specs.LinuxThrottleDevice{Rate: rate}
	throttle.Major, throttle.Minor = major, minor
	path, cg := create(t, d, &specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{ThrottleWriteBpsDevice: []specs.LinuxThrottleDevice{throttle}}})
	if got, want := value(t, cg.Unified, "io.max"), fmt.Sprintf("%d:%d rbps=max wbps=%d riops=max wiops=max", major, minor, rate); got != want {
		t.Errorf("io.max is %q, want %q", got, want)
	}
	start := time.Now()
	c := spawn(t, cg, "dd if=/dev/zero of="+dir+"/x bs=256k count=12 oflag=direct 2>/dev/null")
	d.Settle(path, c.Process.Pid)
	if err := c.Wait(); err != nil {
		t.Fatal(err)
	}
	elapsed := time.Since(start)
	s, err := d.Stats(path)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(s.IO.Devices, func(d DeviceIO) bool { return d.Major == uint64(major) && d.Minor == uint64(minor) })
	if i < 0 || s.IO.Devices[i].WriteBytes < 3<<20 || s.IO.Devices[i].WriteIOs == 0 {
		t.Errorf("io statistics %+v", s.IO.Devices)
	}
	// 3 MiB at 1 MiB/s; the first slice of time is free.
	if elapsed < 2*time.Second {
		t.Errorf("3 MiB in %v with a limit of 1 MiB/s", elapsed)
	}
	throttle.Rate = 0
	if err := d.Update(t.Context(), path, &specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{ThrottleWriteBpsDevice: []specs.LinuxThrottleDevice{throttle}}}); err != nil {
		t.Fatal(err)
	}
	if got := value(t, cg.Unified, "io.max"); got != "" {
		t.Errorf("io.max after the limit was taken away: %q", got)
	}
}

// TestV2Hugetlb maps huge pages in a cgroup that may have one.
func TestV2Hugetlb(t *testing.T) {
	const page = 2 << 20
	if n, err := strconv.Atoi(os.Getenv("MAP_PAGES")); err == nil {
		_, err := unix.Mmap(-1, 0, n*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_HUGETLB|unix.MAP_POPULATE)
		fmt.Println("mapped:", err)
		return
	}
	d := onV2(t, "hugetlb")
	if n, _, err := number("/proc/sys/vm", "nr_hugepages"); err != nil || n < 2 {
		t.Skip("no huge pages: ", n, err)
	}
	_, cg := create(t, d, &specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: page}}})
	for pages, want := range map[string]string{"1": "mapped: <nil>\n", "2": "mapped: cannot allocate memory\n"} {
		if got := inside(t, cg, "TestV2Hugetlb", "MAP_PAGES="+pages); !strings.Contains(got, want) {
			t.Errorf("%s pages: %q, want %q", pages, got, want)
		}
	}
}

// inside runs a test of this binary in a cgroup.
func inside(t *testing.T, cg *engine.Cgroup, test string, env ...string) string {
	t.Helper()
	fd, err := unix.Open(cg.Unified, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	c := exec.Command("/proc/self/exe", "-test.run=^"+test+"$")
	c.Env = append(os.Environ(), env...)
	c.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: fd}
	out, err := c.CombinedOutput()
	if err != nil {
		t.Logf("%s: %v", test, err)
	}
	return string(out)
}
