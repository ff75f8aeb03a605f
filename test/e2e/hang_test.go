package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
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

// patience is how long a call may take that has nothing to do with what hangs, or that says that it can't go on.
const patience = 45 * time.Second

// bounded runs a call that must come back within patience.
func (f *fixture) bounded(what string, call func(context.Context) error) error {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.ctx, 2*patience)
	defer cancel()
	began := time.Now()
	err := call(ctx)
	if took := time.Since(began); took > patience {
		f.t.Errorf("%s took %v: %v", what, took, err)
	}
	f.t.Logf("%s: %v: %v", what, time.Since(began).Round(time.Millisecond), err)
	return err
}

// answers sees to it that lists and the like answer.
func (f *fixture) answers() {
	f.t.Helper()
	for what, call := range map[string]func(context.Context) error{
		"list pods": func(ctx context.Context) error {
			_, err := f.Runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
			return err
		},
		"list containers": func(ctx context.Context) error {
			_, err := f.Runtime.ListContainers(ctx, &cri.ListContainersRequest{})
			return err
		},
		"stats": func(ctx context.Context) error {
			_, err := f.Runtime.ListContainerStats(ctx, &cri.ListContainerStatsRequest{})
			return err
		},
		"status": func(ctx context.Context) error {
			_, err := f.Runtime.Status(ctx, &cri.StatusRequest{Verbose: true})
			return err
		},
	} {
		if err := f.bounded(what, call); err != nil {
			f.t.Errorf("%s: %v", what, err)
		}
	}
}

// othersGoOn sees to it that lists answer, and that another pod can live its whole life.
func (f *fixture) othersGoOn(name string) {
	f.t.Helper()
	f.answers()
	pod := f.podConfig(name)
	var id, ctr string
	err := f.bounded("another pod", func(ctx context.Context) error {
		r, err := f.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: pod})
		if err != nil {
			return err
		}
		id = r.PodSandboxId
		c, err := f.Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: id, SandboxConfig: pod,
			Config: containerConfig("c", images.Busybox, "sh", "-c", "echo begun; exec sleep 1000")})
		if err != nil {
			return err
		}
		ctr = c.ContainerId
		_, err = f.Runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: ctr})
		return err
	})
	if err != nil {
		f.t.Fatalf("another pod: %v", err)
	}
	f.ids = append(f.ids, id, ctr)
	f.eventually("the other pod's log", func() bool {
		b, _ := os.ReadFile(filepath.Join(pod.LogDirectory, "c.log"))
		return strings.Contains(string(b), "begun")
	})
	if out := f.exec(ctr, "echo there"); out != "there\n" {
		f.t.Errorf("exec: %q", out)
	}
	if err := f.bounded("the other pod's end", func(context.Context) error { f.removePod(id); return nil }); err != nil {
		f.t.Error(err)
	}
}

// TestHangingVolume: the file system of a volume answers no more while a container is made with it, and while one uses it.
func TestHangingVolume(t *testing.T) {
	f := start(t, testnode.Options{})
	f.pull(images.Busybox)
	dir := filepath.Join(f.Dir, "tmp", "volume")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	fs := newHangFS(t, dir)
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	pod := f.podConfig("hangs")
	id := f.runPod(pod)
	config := func(name string) *cri.ContainerConfig {
		c := containerConfig(name, images.Busybox, "sh", "-c", "while :; do ls /volume/no; sleep 0.1; done")
		c.Mounts = []*cri.Mount{{HostPath: filepath.Join(dir, "sub"), ContainerPath: "/volume"}}
		return c
	}
	user := f.runContainer(id, pod, config("user"))
	fs.hang()
	f.eventually("the container waits for its volume", func() bool { return fs.waiting() > 0 })

	err := f.bounded("create", func(ctx context.Context) error {
		short, cancel := context.WithTimeout(ctx, 5*time.Second)
		defer cancel()
		_, err := f.Runtime.CreateContainer(short, &cri.CreateContainerRequest{PodSandboxId: id, SandboxConfig: pod, Config: config("maker")})
		return err
	})
	if err == nil {
		t.Error("a container was made with a volume that does not answer")
	}
	f.othersGoOn("bystander")

	stopped := make(chan error, 1)
	go func() { // SIGKILL is given half a minute
		_, err := f.Runtime.StopContainer(f.ctx, &cri.StopContainerRequest{ContainerId: user, Timeout: 1})
		stopped <- err
	}()
	err = f.bounded("stop pod", func(ctx context.Context) error {
		_, err := f.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: id})
		return err
	})
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "uninterruptible sleep") &&
		!strings.Contains(err.Error(), "a file system that it needs") {
		t.Errorf("a pod whose process can't be killed: %v", err)
	}
	if err := <-stopped; status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "uninterruptible sleep") {
		t.Errorf("a container whose process can't be killed: %v", err)
	}
	f.othersGoOn("bystander-2")
	fs.abort()
	if err := f.bounded("stop pod, again", func(ctx context.Context) error {
		_, err := f.Runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: id})
		return err
	}); err != nil {
		t.Error(err)
	}
	st, err := f.Runtime.ContainerStatus(f.ctx, &cri.ContainerStatusRequest{ContainerId: user})
	if err != nil || st.Status.State != cri.ContainerState_CONTAINER_EXITED || st.Status.ExitCode != 137 {
		t.Errorf("%v %v", st, err)
	}
	f.removePod(id)
	if _, err := f.Runtime.ContainerStatus(f.ctx, &cri.ContainerStatusRequest{ContainerId: user}); status.Code(err) != codes.NotFound {
		t.Errorf("after its removal: %v", err)
	}
}

// TestHangingLog: the file system of a pod's logs answers no more. That pod's output waits; every other pod lives its whole
// life, logs and is executed in; what hangs runs on, can be stopped, and is listed; what needs the log is refused by its name.
func TestHangingLog(t *testing.T) {
	f := start(t, testnode.Options{})
	f.pull(images.Busybox)
	dir := filepath.Join(f.Dir, "tmp", "logs")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	fs := newHangFS(t, dir)
	pod := f.podConfig("hangs")
	pod.LogDirectory = filepath.Join(dir, "pod")
	id := f.runPod(pod)
	user := f.runContainer(id, pod, containerConfig("user", images.Busybox, "sh", "-c", "while :; do echo line; sleep 0.01; done"))
	other := f.podConfig("other")
	otherID := f.runPod(other)
	quiet := f.runContainer(otherID, other, containerConfig("quiet", images.Busybox, "sh", "-c", "while :; do echo still; sleep 0.1; done"))
	fs.hang()
	f.eventually("a line waits for its log", func() bool { return fs.waiting() > 0 })
	f.answers()
	for _, c := range []string{quiet, user} {
		x, err := f.Runtime.ExecSync(f.ctx, &cri.ExecSyncRequest{ContainerId: c, Cmd: []string{"echo", "there"}, Timeout: 20})
		if string(x.GetStdout()) != "there\n" { // an exec's output goes to its client
			t.Fatalf("exec: %v, %v\n%s", x, err, f.monitorStacks())
		}
	}
	logged := func() int {
		b, _ := os.ReadFile(filepath.Join(other.LogDirectory, "quiet.log"))
		return strings.Count(string(b), "still")
	}
	before := logged()
	f.eventually("another container's output is written", func() bool { return logged() > before+3 })
	f.othersGoOn("third")
	if err := f.bounded("another cri-server", func(ctx context.Context) error {
		return errors.Join(f.KillServer(), f.StartServer(ctx))
	}); err != nil {
		t.Fatal(err)
	}
	f.answers()
	err := f.bounded("reopen", func(ctx context.Context) error {
		_, err := f.Runtime.ReopenContainerLog(ctx, &cri.ReopenContainerLogRequest{ContainerId: user})
		return err
	})
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), "logs/pod/user.log") {
		t.Errorf("a log that hangs is reopened: %v", err)
	}
	ends := make(chan error, 2)
	for _, p := range []string{otherID, id} {
		go func() {
			_, err := f.Runtime.StopPodSandbox(f.ctx, &cri.StopPodSandboxRequest{PodSandboxId: p})
			ends <- err
		}()
	}
	if err := f.bounded("stop pods", func(context.Context) error { return errors.Join(<-ends, <-ends) }); err != nil {
		t.Error(err)
	}
	f.answers()
	f.othersGoOn("fourth")
	fs.abort()
	f.removePod(id)
	f.removePod(otherID)
	f.othersGoOn("bystander")
	if _, err := f.Runtime.ContainerStatus(f.ctx, &cri.ContainerStatusRequest{ContainerId: user}); status.Code(err) != codes.NotFound {
		t.Errorf("after its removal: %v", err)
	}
}

// monitorStacks ends cri-monitor and returns what its goroutines were at.
func (f *fixture) monitorStacks() string {
	_ = unix.Kill(f.monitor(), unix.SIGQUIT)
	var asleep strings.Builder // in the kernel, not to be woken up; and what is executed, if it was not reaped
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, s := range stats {
		if b, _ := os.ReadFile(s); strings.Contains(string(b), ") D ") || strings.Contains(string(b), "(echo)") {
			stack, _ := os.ReadFile(filepath.Join(filepath.Dir(s), "stack"))
			fmt.Fprintf(&asleep, "%s%s", b, stack)
		}
	}
	time.Sleep(time.Second)
	b, _ := os.ReadFile(filepath.Join(f.State, "monitor", "monitor.log"))
	return asleep.String() + string(b)
}
