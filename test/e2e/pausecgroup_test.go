package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/test/images"
	"github.com/seed-9a14075a/cri-server/test/testnode"
)

// kubeletCgroup makes a pod's cgroup in every hierarchy as the kubelet does, with a process in it, and returns its directories
// and a check that all is as it was.
func (f *fixture) kubeletCgroup(path string) (dirs []string, check func()) {
	f.t.Helper()
	other := exec.Command("sleep", "1000")
	f.do(other.Start())
	roots, err := filepath.Glob("/sys/fs/cgroup/*/cgroup.procs")
	f.do(err)
	if len(roots) == 0 {
		roots = []string{"/sys/fs/cgroup/cgroup.procs"}
	}
	f.t.Cleanup(func() {
		_ = other.Process.Kill()
		_ = other.Wait()
		for _, dir := range dirs {
			_ = unix.Rmdir(dir)
			_ = unix.Rmdir(filepath.Dir(dir))
		}
	})
	for _, root := range roots {
		dir := filepath.Join(filepath.Dir(root), path)
		f.do(os.MkdirAll(dir, 0o755))
		dirs = append(dirs, dir)
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} { // of those above too: cpuset(7)
			for _, at := range []string{filepath.Dir(dir), dir} {
				if b, err := os.ReadFile(filepath.Join(filepath.Dir(at), file)); err == nil && len(strings.TrimSpace(string(b))) > 0 {
					_ = os.WriteFile(filepath.Join(at, file), b, 0)
				}
			}
		}
		if root != "/sys/fs/cgroup/cgroup.procs" { // on v2 only leaves have processes (cgroups(7))
			f.do(os.WriteFile(filepath.Join(dir, "cgroup.procs"), fmt.Append(nil, other.Process.Pid), 0))
		}
	}
	return dirs, func() {
		f.t.Helper()
		if err := other.Process.Signal(unix.Signal(0)); err != nil {
			f.t.Errorf("a process of the pod's cgroup: %v", err)
		}
		for _, dir := range dirs {
			state, err := os.ReadFile(filepath.Join(dir, "freezer.state"))
			if err == nil && strings.TrimSpace(string(state)) != "THAWED" {
				f.t.Errorf("%s is %s", dir, state)
			}
			if _, err := os.Stat(dir); err != nil {
				f.t.Error(err)
			}
		}
	}
}

// Pause is in the cgroup that the kubelet has made for the pod, and what is done to pause is done to nobody else there.
func TestPauseInThePodsCgroup(t *testing.T) {
	f := start(t, testnode.Options{})
	if strings.HasSuffix(f.podConfig("").Linux.CgroupParent, ".slice") {
		t.Skip("a scope is one in all hierarchies")
	}
	f.pull(images.Busybox)
	one, two := f.podConfig("one"), f.podConfig("two")
	two.Linux.CgroupParent = one.Linux.CgroupParent
	parents, unharmed := f.kubeletCgroup(one.Linux.CgroupParent)
	a, b := f.runPod(one), f.runPod(two)
	container := containerConfig("c", images.Busybox, "sleep", "1000")
	ca, cb := f.runContainer(a, one, container), f.runContainer(b, two, container)

	want := 1
	if v1 := len(parents) > 1; v1 {
		if want = 2; len(f.cgroupsOf(a)) != want { // unified and devices, on a hybrid layout
			want = 3 // pids, freezer and devices
		}
		if _, err := os.Stat("/sys/fs/cgroup/devices" + one.Linux.CgroupParent + "/" + a); err != nil {
			t.Errorf("pause may do what the pod may: %v", err)
		}
	}
	for id, n := range map[string]int{a: want, b: want, ca: len(parents), cb: len(parents)} {
		if dirs := f.cgroupsOf(id); len(dirs) != n {
			t.Errorf("%s has %q, want %d", id, dirs, n)
		}
	}
	pause := f.pidOf(a)
	for _, dir := range parents {
		list, err := os.ReadFile(filepath.Join(dir, "tasks")) // v1's
		_, none := os.Stat(filepath.Join(dir, a))
		own := none == nil
		if in := strings.Contains("\n"+string(list), fmt.Sprintf("\n%d\n", pause)); err == nil && in == own {
			t.Errorf("%s: pause is there: %v; has one of its own: %v", dir, in, own)
		}
	}
	r, err := f.Runtime.PodSandboxStats(f.ctx, &cri.PodSandboxStatsRequest{PodSandboxId: a})
	if err != nil || r.GetStats().GetLinux().GetMemory().GetUsageBytes().GetValue() == 0 || r.GetStats().GetLinux().GetProcess().GetProcessCount().GetValue() < 2 {
		t.Errorf("stats %v, %v", r, err)
	}

	f.restart("with pause in the pod's cgroup")
	f.do(unix.Kill(pause, unix.SIGKILL))
	f.eventually("the pod to be not ready", func() bool { return f.podState(a) == cri.PodSandboxState_SANDBOX_NOTREADY })
	unharmed()
	f.removePod(a)
	unharmed()
	if s := f.containerStatus(cb).State; s != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("the neighbour's container is %s", s)
	}
	if out := f.exec(cb, "echo here"); out != "here\n" {
		t.Errorf("the neighbour says %q", out)
	}
	monitor := f.monitor()
	f.do(f.KillServer())
	f.do(unix.Kill(monitor, unix.SIGKILL))
	f.do(f.StartServer(f.ctx))
	unharmed()
	f.removePod(b)
	unharmed()
	if left := f.cgroupsOf(a, b, ca, cb); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}
