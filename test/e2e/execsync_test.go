package e2e

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/test/images"
	"github.com/seed-9a14075a/cri-server/test/testnode"
)

// idle starts a pod with one container that sleeps.
func (f *fixture) idle(name string, change ...func(*cri.PodSandboxConfig)) (pod, container string) {
	f.t.Helper()
	f.pull(images.Busybox)
	p := f.podConfig(name)
	for _, c := range change {
		c(p)
	}
	pod = f.runPod(p)
	return pod, f.runContainer(pod, p, containerConfig("c", images.Busybox, "sleep", "100000"))
}

// openFiles is the number of file descriptors of the server, and of its threads.
func (f *fixture) openFiles() (fds, threads int) {
	f.t.Helper()
	for dir, n := range map[string]*int{"fd": &fds, "task": &threads} {
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/%s", f.ServerPid(), dir))
		if err != nil {
			f.t.Fatal(err)
		}
		*n = len(entries)
	}
	return fds, threads
}

// ExecSync's output is what the program wrote, however often. CRI_SERVER_EXECS makes it more often.
func TestExecSyncOutput(t *testing.T) {
	n := 200
	if v := os.Getenv("CRI_SERVER_EXECS"); v != "" {
		var err error
		if n, err = strconv.Atoi(v); err != nil {
			t.Fatal(err)
		}
	}
	f := start(t, testnode.Options{})
	pod, c := f.idle("output")
	before, _ := f.openFiles()
	var next atomic.Int32
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := int(next.Add(1)); i <= n; i = int(next.Add(1)) {
				line := fmt.Sprintf("exec %07d of many\n", i)
				want := bytes.Repeat([]byte(line), 1<<20/len(line)+1)[:1<<20]
				r, err := f.Runtime.ExecSync(f.ctx, &cri.ExecSyncRequest{ContainerId: c, Timeout: 60,
					Cmd: []string{"sh", "-c", fmt.Sprintf("yes 'exec %07d of many' | head -c 1048576; echo err >&2; exit %d", i, i%100)}})
				if err != nil || !bytes.Equal(r.Stdout, want) || string(r.Stderr) != "err\n" || r.ExitCode != int32(i%100) {
					t.Errorf("exec %d: %d bytes, stderr %.50q, exit code %d: %v", i, len(r.GetStdout()), r.GetStderr(), r.GetExitCode(), err)
					return
				}
			}
		})
	}
	wg.Wait()
	f.eventually("the server's descriptors are closed", func() bool { after, _ := f.openFiles(); return after <= before+4 })
	if got := strings.Fields(f.exec(c, "ps -o comm | grep -c -E 'yes|head' ; true")); len(got) != 1 || got[0] != "0" {
		t.Errorf("processes left: %q", got)
	}
	f.removePod(pod)
}

// ExecSyncRequest.timeout: all of what the command has started dies, however it hides.
func TestExecSyncTimeout(t *testing.T) {
	f := start(t, testnode.Options{})
	pod, c := f.idle("timeout")
	for name, script := range map[string]string{
		"plain":                  "sleep 7771",
		"double fork":            "(sleep 7772 & sleep 7772 &) ; sleep 7772",
		"session of its own":     "setsid sleep 7773 & setsid sh -c 'sleep 7773 & sleep 7773' & sleep 7773",
		"process group":          "set -m; sleep 7774 & sleep 7774 & wait",
		"orphan of a dead shell": "sh -c 'sleep 7775 & exit 0'; sleep 7775",
		"ignores signals":        "trap '' TERM INT HUP; sleep 7776; sleep 7776",
		"output without end":     "yes 7777",
	} {
		began := time.Now()
		_, err := f.Runtime.ExecSync(f.ctx, &cri.ExecSyncRequest{ContainerId: c, Cmd: []string{"sh", "-c", script}, Timeout: 1})
		if status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("%s: %v", name, err)
		}
		if took := time.Since(began); took < time.Second || took > time.Minute {
			t.Errorf("%s: took %s", name, took)
		}
	}
	f.eventually("none of them is left", func() bool {
		return strings.TrimSpace(f.exec(c, "ps -o args | grep -E '[ ]777[0-9]' | grep -v grep; true")) == ""
	})
	f.removePod(pod)
}

// Stdout and stderr together fit into one message to kubelet (16 MiB); what is more is thrown away and no error.
func TestExecSyncCap(t *testing.T) {
	f := start(t, testnode.Options{})
	pod, c := f.idle("cap")
	r, err := f.Runtime.ExecSync(f.ctx, &cri.ExecSyncRequest{ContainerId: c, Timeout: 60,
		Cmd: []string{"sh", "-c", "head -c 12000000 /dev/zero & head -c 12000000 /dev/zero >&2; wait; exit 9"}})
	if err != nil {
		t.Fatal(err)
	}
	if sum := len(r.Stdout) + len(r.Stderr); sum != 15<<20 || r.ExitCode != 9 {
		t.Errorf("%d bytes, exit code %d", sum, r.ExitCode)
	}
	f.removePod(pod)
}
