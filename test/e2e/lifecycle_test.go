package e2e

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/test/images"
	"github.com/seed-9a14075a/cri-server/test/testnode"
)

// A record that is damaged makes its object unreadable, and nothing else: it is listed as kubelet wants it, nothing that
// runs is touched, and it can be stopped and removed with all that belongs to it.
func TestDamagedRecords(t *testing.T) {
	f := start(t, testnode.Options{})
	f.pull(images.Busybox)
	for name, damage := range map[string]func([]byte) []byte{
		"bit flipped": func(b []byte) []byte { b[len(b)/2] ^= 4; return b },
		"cut short":   func(b []byte) []byte { return b[:len(b)/2] },
		"empty":       func([]byte) []byte { return nil },
	} {
		for _, kind := range []string{"sandboxes", "containers"} {
			t.Run(name+" "+kind, func(t *testing.T) {
				f.t = t
				f.damagedRecord(kind, damage)
			})
		}
	}
	f.t = t
}

func (f *fixture) damagedRecord(kind string, damage func([]byte) []byte) {
	pod := f.podConfig("damaged")
	p := f.runPod(pod)
	c := f.runContainer(p, pod, containerConfig("c", images.Busybox, "sleep", "1000"))
	pid := f.pidOf(c)
	if err := f.KillServer(); err != nil {
		f.t.Fatal(err)
	}
	id := map[string]string{"sandboxes": p, "containers": c}[kind]
	path := filepath.Join(f.Dir, "root", kind, id+".json")
	if err := os.WriteFile(path, damage([]byte(readFile(f.t, path))), 0o600); err != nil {
		f.t.Fatal(err)
	}
	if err := f.StartServer(f.ctx); err != nil {
		f.t.Fatal(err)
	}
	if err := unix.Kill(pid, 0); err != nil {
		f.t.Errorf("the container does not run any more: %v", err)
	}
	cs, err := f.Runtime.ContainerStatus(f.ctx, &cri.ContainerStatusRequest{ContainerId: c, Verbose: true})
	if err != nil || cs.Status.GetImage().GetImage() == "" || cs.Status.GetImageRef() == "" || cs.Status.GetMetadata().GetName() == "" || cs.Status.GetCreatedAt() <= 0 {
		f.t.Errorf("kubelet would refuse the container's status: %v %v", cs, err)
	}
	ps, err := f.Runtime.PodSandboxStatus(f.ctx, &cri.PodSandboxStatusRequest{PodSandboxId: p, Verbose: true})
	if err != nil || ps.Status.GetMetadata().GetUid() == "" || ps.Status.GetCreatedAt() <= 0 {
		f.t.Errorf("kubelet would refuse the sandbox's status: %v %v", ps, err)
	}
	if _, err := f.Runtime.StopContainer(f.ctx, &cri.StopContainerRequest{ContainerId: c}); err != nil {
		f.t.Errorf("stop container: %v", err)
	}
	if _, err := f.Runtime.RemoveContainer(f.ctx, &cri.RemoveContainerRequest{ContainerId: c}); err != nil {
		f.t.Errorf("remove container: %v", err)
	}
	f.removePod(p)
	if left := f.cgroupsOf(p, c); len(left) > 0 {
		f.t.Errorf("left: %q", left)
	}
}

// cgroupsOf finds the cgroups of pods and containers, of either driver.
func (f *fixture) cgroupsOf(ids ...string) (found []string) {
	_ = filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		for _, id := range ids {
			if err == nil && d.IsDir() && (d.Name() == id || d.Name() == "cri-"+id+".scope") {
				found = append(found, path)
			}
		}
		return nil
	})
	return found
}

// pidOf is the process of a container as the node sees it, taken from its cgroup.
func (f *fixture) pidOf(id string) int {
	f.t.Helper()
	for _, dir := range f.cgroupsOf(id) {
		b, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if pid, err := strconv.Atoi(strings.SplitN(string(b), "\n", 2)[0]); err == nil {
			return pid
		}
	}
	f.t.Fatalf("%s has no process", id)
	return 0
}

func (f *fixture) podState(id string) cri.PodSandboxState {
	f.t.Helper()
	r, err := f.Runtime.PodSandboxStatus(f.ctx, &cri.PodSandboxStatusRequest{PodSandboxId: id})
	if err != nil {
		f.t.Fatal(err)
	}
	return r.Status.State
}

func (f *fixture) containerStatus(id string) *cri.ContainerStatus {
	f.t.Helper()
	r, err := f.Runtime.ContainerStatus(f.ctx, &cri.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		f.t.Fatal(err)
	}
	return r.Status
}

// Whoever kills pause from outside ends the sandbox, not what runs in it; a restart of the server leaves that so.
func TestPauseKilled(t *testing.T) {
	f := start(t, testnode.Options{})
	f.pull(images.Busybox)
	pod := f.podConfig("beheaded")
	p := f.runPod(pod)
	c := f.runContainer(p, pod, containerConfig("c", images.Busybox, "sh", "-c", "sleep 1000; exit 3"))
	if err := unix.Kill(f.pidOf(p), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	f.eventually("the sandbox is not ready", func() bool { return f.podState(p) == cri.PodSandboxState_SANDBOX_NOTREADY })
	f.restart("after pause was killed")
	if got := f.exec(c, "ip -o address show eth0"); !strings.Contains(got, "inet ") {
		t.Errorf("the network of the container is gone: %q", got)
	}
	_, err := f.Runtime.CreateContainer(f.ctx, &cri.CreateContainerRequest{PodSandboxId: p, SandboxConfig: pod,
		Config: containerConfig("d", images.Busybox, "true")})
	if status.Code(err) != codes.FailedPrecondition {
		t.Errorf("create in it: %v", err)
	}
	again := f.podConfig("beheaded")
	again.Metadata.Attempt = 1 // as kubelet does
	f.removePod(f.runPod(again))
	if err := unix.Kill(f.pidOf(c), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	f.eventually("the container has ended", func() bool { return f.containerStatus(c).State == cri.ContainerState_CONTAINER_EXITED })
	if s := f.containerStatus(c); s.ExitCode != 137 || s.Reason != "Error" {
		t.Errorf("killed with SIGKILL: %v", s)
	}
	f.removePod(p)
}

// A stop that the server did not live to finish is finished by the next one, containers included.
func TestStopIsResumed(t *testing.T) {
	f := start(t, testnode.Options{})
	f.pull(images.Busybox)
	pod := f.podConfig("resumed")
	p := f.runPod(pod)
	c := f.runContainer(p, pod, containerConfig("c", images.Busybox, "sleep", "1000"))
	monitor := f.monitor()
	if err := unix.Kill(monitor, unix.SIGSTOP); err != nil { // so that the stop can't come to its end
		t.Fatal(err)
	}
	defer func() { _ = unix.Kill(monitor, unix.SIGCONT) }()
	stopped := make(chan error, 1)
	go func() {
		_, err := f.Runtime.StopPodSandbox(f.ctx, &cri.StopPodSandboxRequest{PodSandboxId: p})
		stopped <- err
	}()
	f.eventually("the stop has begun, and shows though nobody answers", func() bool {
		return f.podState(p) == cri.PodSandboxState_SANDBOX_NOTREADY
	})
	began := time.Now()
	r, err := f.Runtime.Status(f.ctx, &cri.StatusRequest{})
	if took := time.Since(began); err != nil || took > time.Minute || r.Status.Conditions[0].Status {
		t.Errorf("status with a hung monitor: %v, %v, after %s", r, err, took)
	}
	if err := f.KillServer(); err != nil {
		t.Fatal(err)
	}
	<-stopped
	if err := unix.Kill(monitor, unix.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := f.StartServer(f.ctx); err != nil {
		t.Fatal(err)
	}
	f.eventually("the container is ended", func() bool { return f.containerStatus(c).State == cri.ContainerState_CONTAINER_EXITED })
	f.eventually("nothing of the pod is left in the kernel", func() bool {
		_, err := os.Stat("/run/netns/cri-" + p)
		return errors.Is(err, os.ErrNotExist) && len(f.cgroupsOf(p, c)) == 0
	})
	f.removePod(p)
}

func (f *fixture) monitor() int {
	f.t.Helper()
	for _, p := range testnode.Descendants(os.Getppid()) {
		if !p.Zombie && strings.HasPrefix(p.Cmdline, filepath.Join(f.Repo, "bin", "cri-monitor")) {
			return p.Pid
		}
	}
	f.t.Fatal("no cri-monitor")
	return 0
}

// With no room for a record nothing new is made, but what there is can be stopped and removed, and its end is seen.
func TestFullDisk(t *testing.T) {
	f := start(t, testnode.Options{})
	f.pull(images.Busybox)
	if err := f.KillServer(); err != nil {
		t.Fatal(err)
	}
	var fillers []string
	for _, dir := range []string{"sandboxes", "containers"} {
		dir = filepath.Join(f.Dir, "root", dir)
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
		fillers = append(fillers, filepath.Join(dir, "filler"))
	}
	if err := f.StartServer(f.ctx); err != nil {
		t.Fatal(err)
	}
	pod := f.podConfig("full")
	p := f.runPod(pod)
	c := f.runContainer(p, pod, containerConfig("c", images.Busybox, "sleep", "1000"))
	short := f.runContainer(p, pod, containerConfig("short", images.Busybox, "sh", "-c", "while ! test -e /end; do sleep 0.05; done; exit 3"))
	made, err := f.Runtime.CreateContainer(f.ctx, &cri.CreateContainerRequest{PodSandboxId: p, SandboxConfig: pod,
		Config: containerConfig("made", images.Busybox, "sleep", "1000")})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range fillers {
		w, err := os.Create(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(w, zeros{}); !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("fill the disk: %v", err)
		}
		w.Close()
	}
	if _, err := f.Runtime.RunPodSandbox(f.ctx, &cri.RunPodSandboxRequest{Config: f.podConfig("none")}); err == nil || !strings.Contains(err.Error(), "no space") {
		t.Errorf("run: %v", err)
	}
	_, err = f.Runtime.CreateContainer(f.ctx, &cri.CreateContainerRequest{PodSandboxId: p, SandboxConfig: pod,
		Config: containerConfig("none", images.Busybox, "true")})
	if err == nil || !strings.Contains(err.Error(), "no space") {
		t.Errorf("create: %v", err)
	}
	if _, err := f.Runtime.StartContainer(f.ctx, &cri.StartContainerRequest{ContainerId: made.ContainerId}); err != nil {
		t.Errorf("start: %v", err)
	}
	f.exec(made.ContainerId, "true")
	f.exec(short, "touch /end")
	f.eventually("the end of a container is seen", func() bool {
		return f.containerStatus(short).State == cri.ContainerState_CONTAINER_EXITED
	})
	f.restart("with a full disk")
	if s := f.containerStatus(short); s.ExitCode != 3 {
		t.Errorf("the exit code is lost: %v", s)
	}
	if _, err := f.Runtime.StopContainer(f.ctx, &cri.StopContainerRequest{ContainerId: c, Timeout: 0}); err != nil {
		t.Errorf("stop: %v", err)
	}
	f.removePod(p)
	if all := f.listing(); len(all) != 1 {
		t.Errorf("listed: %q", all)
	}
	f.ids = append(f.ids, made.ContainerId)
	for _, name := range fillers {
		if err := os.Remove(name); err != nil {
			t.Error(err)
		}
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// When cri-monitor is killed the next one takes over what it held: containers run on, their logs go on, and their exit codes
// are known. Killed together with cri-server and without systemd's descriptor store, it leaves containers that can be
// removed.
func TestMonitorKilled(t *testing.T) {
	f := start(t, testnode.Options{})
	f.pull(images.Busybox)
	pod := f.podConfig("kept")
	p := f.runPod(pod)
	c := f.runContainer(p, pod, containerConfig("c", images.Busybox, "sh", "-c", "while ! [ -e /end ]; do sleep 0.05; done; echo last; exit 3"))
	f.exec(c, "true")
	if err := unix.Kill(f.monitor(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	f.eventually("a command runs in the same container again", func() bool {
		r, err := f.Runtime.ExecSync(f.ctx, &cri.ExecSyncRequest{ContainerId: c, Cmd: []string{"touch", "/end"}, Timeout: 5})
		return err == nil && r.ExitCode == 0
	})
	f.eventually("the container has ended", func() bool {
		return f.containerStatus(c).State == cri.ContainerState_CONTAINER_EXITED
	})
	if s := f.containerStatus(c); s.ExitCode != 3 {
		t.Errorf("its exit code is lost: %v", s)
	}
	f.eventually("its last line is in the log", func() bool {
		b, err := os.ReadFile(f.containerStatus(c).LogPath)
		return err == nil && strings.Contains(string(b), "stdout F last\n")
	})
	f.removePod(p)
	f.bothKilled()
}

func (f *fixture) bothKilled() {
	f.t.Helper()
	pod := f.podConfig("lost")
	p := f.runPod(pod)
	c := f.runContainer(p, pod, containerConfig("c", images.Busybox, "sleep", "1000"))
	monitor := f.monitor()
	if err := f.KillServer(); err != nil {
		f.t.Fatal(err)
	}
	if err := unix.Kill(monitor, unix.SIGKILL); err != nil {
		f.t.Fatal(err)
	}
	if err := f.StartServer(f.ctx); err != nil {
		f.t.Fatal(err)
	}
	if s := f.containerStatus(c); s.State == cri.ContainerState_CONTAINER_EXITED && s.Reason != "Unknown" {
		f.t.Errorf("%v", s)
	}
	f.removePod(p)
	f.removePod(f.runPod(pod)) // its name is free
}
