package cgroupdriver

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

// TestV2ContainerWithCgroupsOfItsOwn does what dockerd and systemd do in a container: they move all processes out of the
// container's cgroup and turn on controllers there.
func TestV2ContainerWithCgroupsOfItsOwn(t *testing.T) {
	d := onV2(t, "cpu", "memory", "pids")
	path, cg := create(t, d, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: p(int64(64 << 20))}, Pids: &specs.LinuxPids{Limit: p(int64(50))}})
	c := spawn(t, cg, "cd "+cg.Unified+` && mkdir init && echo 0 >init/cgroup.procs && echo "+cpu +memory +pids" >cgroup.subtree_control &&
		mkdir work && echo 16777216 >work/memory.max && exec sleep 100`)
	until(t, "the process to join", func() bool { pids, err := d.Pids(path); return err == nil && len(pids) > 0 })
	d.Settle(path, c.Process.Pid)
	until(t, "a limit inside the container", func() bool {
		s, err := read(filepath.Join(cg.Unified, "work"), "memory.max")
		return err == nil && s == "16777216"
	})
	if s, err := d.Stats(path); err != nil || s.Pids.Current != 1 || s.Pids.Limit != 50 || s.Memory.Usage == 0 {
		t.Errorf("stats %+v, %v", s, err)
	}
	sub, err := d.Create(t.Context(), path+"/exec-1", nil)
	if err != nil {
		t.Fatal(err)
	}
	session := spawn(t, sub, "sleep 100")
	own := filepath.Join(cg.Unified, "exec-1")
	until(t, "the session to run", func() bool { ps, _ := procs(own); return len(ps) > 0 })
	if err := d.Kill(t.Context(), path+"/exec-1"); err != nil {
		t.Error(err)
	}
	_ = session.Wait()
	if err := d.Update(t.Context(), path, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: p(int64(96 << 20))}}); err != nil {
		t.Error(err)
	}
	if err := d.Delete(t.Context(), path); err != nil {
		t.Error(err)
	}
	_ = c.Wait()
}

// TestV2NamespaceRoot is what a node in a container has: a cgroup namespace whose root is no root. With processes in it no
// controller can be turned on, and the error says where.
func TestV2NamespaceRoot(t *testing.T) {
	if os.Getenv("NAMESPACE_ROOT") != "" {
		namespaceRoot(t)
		return
	}
	d := onV2(t, "pids")
	if d.Name() != "cgroupfs" {
		t.Skip("systemd is outside of the namespace")
	}
	dir := filepath.Join(d.unified, testns.CgroupParent(), "node")
	var made []string
	if err := d.mkdirs(dir, &made); err != nil {
		t.Fatal(err)
	}
	d.enable(filepath.Dir(strings.TrimPrefix(dir, d.unified)))
	out := inside(t, &engine.Cgroup{Unified: dir}, "TestV2NamespaceRoot", "NAMESPACE_ROOT=1")
	if !strings.Contains(out, "PASS") {
		t.Error(out)
	}
}

func namespaceRoot(t *testing.T) {
	runtime.LockOSThread() // the thread, and with it its namespaces, ends with the test
	if err := unix.Unshare(unix.CLONE_NEWCGROUP | unix.CLONE_NEWNS); err != nil {
		t.Fatal(err)
	}
	if err := unix.Unmount("/sys/fs/cgroup", unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, ""); err != nil {
		t.Fatal(err)
	}
	d, err := New(Config{Driver: "cgroupfs", DefaultParent: "/pods"})
	if err != nil {
		t.Fatal(err)
	}
	p1, _ := d.Path("", "c1")
	res := &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: p(int64(5))}}
	if _, err := d.Create(t.Context(), p1, res); !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), "pids controller is not enabled in /sys/fs/cgroup/") {
		t.Errorf("with processes in the root: %v", err)
	}
	if err := os.Mkdir("/sys/fs/cgroup/init", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := write("/sys/fs/cgroup/init", "cgroup.procs", "0"); err != nil {
		t.Fatal(err)
	}
	cg, err := d.Create(t.Context(), p1, res)
	if err != nil {
		t.Fatal(err)
	}
	if got := value(t, cg.Unified, "pids.max"); got != "5" {
		t.Errorf("pids.max is %q", got)
	}
	if err := d.Delete(t.Context(), p1); err != nil {
		t.Error(err)
	}
}

// TestV2DevicesOutliveReload: with systemd, two have filters on the scope.
func TestV2DevicesOutliveReload(t *testing.T) {
	d := onV2(t)
	rules := []specs.LinuxDeviceCgroup{
		{Allow: false, Access: "rwm"},
		{Allow: true, Type: "c", Major: p(int64(1)), Minor: p(int64(3)), Access: "rwm"},
		{Allow: true, Type: "c", Access: "m"},
	}
	path, cg := create(t, d, &specs.LinuxResources{Devices: rules})
	keep := spawn(t, cg, "sleep 100")
	until(t, "the process to join", func() bool { return joined(d, path, keep) })
	d.Settle(path, keep.Process.Pid)
	for _, when := range []string{"at first", "after a reload", "after an update"} {
		switch when {
		case "after a reload":
			if d.Name() != "systemd" {
				continue
			}
			systemctl(t, "daemon-reload")
		case "after an update":
			if err := d.Update(t.Context(), path, &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: p(int64(50))}}); err != nil {
				t.Fatal(err)
			}
		}
		if got := use(t, cg.Unified); got != "read write" {
			t.Errorf("%s a process can: %q", when, got)
		}
	}
}

// TestV2Stats: what a process does is found in the numbers.
func TestV2Stats(t *testing.T) {
	d := onV2(t, "cpu", "memory", "pids", "io")
	path, cg := create(t, d, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: p(int64(64 << 20))}, CPU: &specs.LinuxCPU{Quota: p(int64(50000))}})
	c := spawn(t, cg, "head -c 6291456 /dev/zero >"+filepath.Join(shm(t), "x")+"; i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done; sleep 100 & sleep 100")
	until(t, "two sleeps", func() bool { pids, err := d.Pids(path); return err == nil && len(pids) == 3 })
	d.Settle(path, c.Process.Pid)
	until(t, "the end of a period", func() bool { s, err := d.Stats(path); return err == nil && s.CPU.Periods > 0 })
	s, err := d.Stats(path)
	if err != nil {
		t.Fatal(err)
	}
	if c := s.CPU; c.Usage == 0 || c.Usage < c.System || c.Periods == 0 {
		t.Errorf("cpu %+v", *c)
	}
	m := s.Memory
	if m.Limit != 64<<20 || m.Usage < 6<<20 || m.Usage > m.Limit || m.Cache < 6<<20 || m.WorkingSet > m.Usage || m.Available == nil ||
		*m.Available != m.Limit-m.WorkingSet || m.PageFaults == 0 || m.RSS == 0 {
		t.Errorf("memory %+v", *m)
	}
	if s.Pids.Current != 3 {
		t.Errorf("pids %+v", *s.Pids)
	}
	if exists(cg.Unified, "cpu.pressure") && (s.CPU.PSI == nil || s.Memory.PSI == nil || s.IO == nil || s.IO.PSI == nil) {
		t.Errorf("no pressure: %+v", s)
	}
	if exists(cg.Unified, "memory.peak") && m.MaxUsage < m.Usage {
		t.Errorf("peak %d, usage %d", m.MaxUsage, m.Usage)
	}
}
