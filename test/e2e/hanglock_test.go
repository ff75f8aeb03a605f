package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/test/images"
	"github.com/seed-9a14075a/cri-server/test/testnode"
)

// TestKilledBehindHangingLog: cri-monitor is killed while it writes to a log whose file system does not answer. It can't
// end, and keeps its lock; the next one says who has it, and for which file; lists go on, and all is back when the file
// system is.
func TestKilledBehindHangingLog(t *testing.T) {
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
	f.runContainer(id, pod, containerConfig("user", images.Busybox, "sh", "-c", "while :; do echo line; sleep 0.01; done"))
	other := f.podConfig("other")
	otherID := f.runPod(other)
	quiet := f.runContainer(otherID, other, containerConfig("quiet", images.Busybox, "sh", "-c", "while :; do echo still; sleep 0.1; done"))
	fs.hang()
	f.eventually("a line waits for its log", func() bool { return fs.waiting() > 0 })
	pid := f.monitor()
	cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	args := strings.Split(strings.TrimSuffix(string(cmdline), "\x00"), "\x00")
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	f.eventually("the next cri-monitor tells what holds it up", func() bool {
		out, err := exec.CommandContext(f.ctx, f.Program("cri-monitor"), args[1:]...).CombinedOutput()
		return err != nil && bytes.Contains(out, []byte("uninterruptible sleep")) && bytes.Contains(out, []byte("user.log"))
	})
	ctx, cancel := context.WithTimeout(f.ctx, 10*time.Second)
	defer cancel()
	_, err1 := f.Runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	_, err2 := f.Runtime.ListContainers(ctx, &cri.ListContainersRequest{})
	if err := errors.Join(err1, err2); err != nil {
		t.Errorf("lists: %v", err)
	}
	fs.abort()
	f.eventually("another container is executed in", func() bool {
		x, err := f.Runtime.ExecSync(f.ctx, &cri.ExecSyncRequest{ContainerId: quiet, Cmd: []string{"echo", "there"}, Timeout: 20})
		return err == nil && string(x.Stdout) == "there\n"
	})
	log := filepath.Join(other.LogDirectory, "quiet.log")
	before, _ := os.ReadFile(log)
	f.eventually("its output is written", func() bool {
		b, _ := os.ReadFile(log)
		return strings.Count(string(b), "still") > strings.Count(string(before), "still")
	})
	f.removePod(id)
	f.removePod(otherID)
}

// TestKilledWhileALogHangs: as before, but with a file system that who waits for it can be killed in. The next cri-monitor takes
// back all containers while it still does not answer, and the output of that one when it does.
func TestKilledWhileALogHangs(t *testing.T) {
	f := start(t, testnode.Options{})
	f.pull(images.Busybox)
	dir := filepath.Join(f.Dir, "tmp", "logs")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	fs := newHangFS(t, dir)
	fs.noFlush = true
	if err := exec.CommandContext(f.ctx, "sh", "-c", `: > "$0"`, filepath.Join(dir, "first")).Run(); err != nil { // now the kernel knows
		t.Fatal(err)
	}
	pod := f.podConfig("hangs")
	pod.LogDirectory = filepath.Join(dir, "pod")
	id := f.runPod(pod)
	user := f.runContainer(id, pod, containerConfig("user", images.Busybox, "sh", "-c", "while :; do echo line; sleep 0.01; done"))
	other := f.podConfig("other")
	otherID := f.runPod(other)
	quiet := f.runContainer(otherID, other, containerConfig("quiet", images.Busybox, "sh", "-c", "while :; do echo still; sleep 0.1; done"))
	fs.deafen()
	f.eventually("a line waits for its log", func() bool {
		stacks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stack", f.monitor()))
		for _, s := range stacks {
			if b, _ := os.ReadFile(s); bytes.Contains(b, []byte("fuse_")) {
				return true
			}
		}
		return false
	})
	former := f.monitor()
	if err := unix.Kill(former, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for _, c := range []string{quiet, user} {
		f.eventually("a container is executed in", func() bool {
			x, err := f.Runtime.ExecSync(f.ctx, &cri.ExecSyncRequest{ContainerId: c, Cmd: []string{"echo", "there"}, Timeout: 20})
			return err == nil && string(x.Stdout) == "there\n"
		})
	}
	log := filepath.Join(other.LogDirectory, "quiet.log")
	before, _ := os.ReadFile(log)
	f.eventually("its output is written", func() bool {
		b, _ := os.ReadFile(log)
		return strings.Count(string(b), "still") > strings.Count(string(before), "still")
	})
	f.othersGoOn("third")
	fs.abort()
	f.removePod(id)
	f.removePod(otherID)
}
