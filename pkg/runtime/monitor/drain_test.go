package monitor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

// TestStray ends a container whose pipe a process elsewhere keeps open: the end is told soon, and what the stray
// writes later is logged all the same.
func TestStray(t *testing.T) {
	n := newNode(t)
	fifo := filepath.Join(n.dir, "go")
	mkfifo(t, fifo)
	req := n.request("c", `(read x < `+fifo+`; echo late) & echo early; printf half; exit 0`)
	req.Spec.Linux.Namespaces = nil // the fork engine's Kill then reaches the init only
	n.run(req)
	begin := time.Now()
	n.stopped("c")
	if took := time.Since(begin); took > 15*time.Second {
		t.Errorf("told after %v", took)
	}
	if out, _ := n.output("c"); out != "early\nhalf" {
		t.Errorf("log %q", out)
	}
	if err := os.WriteFile(fifo, []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the stray's line is logged", func() bool {
		out, _ := n.output("c")
		return out == "early\nhalflate\n"
	})
}

// TestDiskFull fills the log's file system under a writing container. It must wait, live, and lose nothing.
func TestDiskFull(t *testing.T) {
	n := newNode(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	const lines = 100_000
	req := n.request("c", fmt.Sprintf("seq 1 %d", lines))
	req.LogDir = dir
	st := n.run(req)
	path := filepath.Join(dir, "c.log")
	eventually(t, "the file system is full and the writer waits in write(2)", func() bool {
		var fs unix.Statfs_t
		if unix.Statfs(dir, &fs) != nil || fs.Bfree > 0 {
			return false
		}
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", st.Pid))
		return strings.Contains(string(b), "pipe_write") || strings.Contains(string(b), "wait") || string(b) == "0"
	})
	if now, err := n.State(t.Context(), "c"); err != nil || now.Status != Running {
		t.Fatal(now, err)
	}
	// Rotation goes on while it is full.
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if err := n.ReopenLog(t.Context(), "c"); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "size=64m"); err != nil {
		t.Fatal(err)
	}
	if st := n.stopped("c"); st.ExitCode != 0 {
		t.Errorf("%+v", st)
	}
	var all []byte
	for _, name := range []string{path + ".1", path} {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		splitLog(t, b)
		all = append(all, b...)
	}
	var want strings.Builder
	for i := 1; i <= lines; i++ {
		fmt.Fprintln(&want, i)
	}
	if out, _ := splitLog(t, all); out != want.String() {
		t.Errorf("%d bytes instead of %d", len(out), want.Len())
	}
}

// TestSlowSubscriber is cut off; others are not disturbed.
func TestSlowSubscriber(t *testing.T) {
	var e events
	slow, known := e.subscribe(func() []State { return []State{{ID: "a", Status: Stopped}} }, nil)
	if known != 1 {
		t.Errorf("%d known", known)
	}
	for range maxQueued {
		e.publish("started", State{}, func() {})
	}
	if q, ok := e.take(slow); ok || len(q) != 0 {
		t.Errorf("%d events, %v", len(q), ok)
	}
	next, _ := e.subscribe(func() []State { return nil }, nil)
	e.publish("stopped", State{ID: "z"}, func() {})
	if q, ok := e.take(next); !ok || len(q) != 1 || q[0].Seq != maxQueued+1 {
		t.Errorf("%v %v", q, ok)
	}
	e.publish("", State{}, func() {})
	if q, ok := e.take(next); !ok || len(q) != 0 {
		t.Errorf("%v %v", q, ok)
	}
}

// TestRemoveDir detaches what is mounted instead of emptying it.
func TestRemoveDir(t *testing.T) {
	n := newNode(t)
	dir, precious := filepath.Join(n.dir, "engine"), t.TempDir()
	keep := filepath.Join(precious, "keep")
	for _, err := range []error{
		os.MkdirAll(filepath.Join(dir, "a/rootfs"), 0o755),
		os.WriteFile(keep, nil, 0o600),
		os.Symlink(precious, filepath.Join(dir, "link")),
		unix.Mount(precious, filepath.Join(dir, "a/rootfs"), "", unix.MS_BIND, ""),
		unix.Mount(precious, filepath.Join(dir, "a/rootfs"), "", unix.MS_BIND, ""),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := removeDir(dir); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(keep); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Error("the directory is still there")
	}
}

// slowEngine makes containers when it is told to.
type slowEngine struct {
	engine.Engine
	begun, ready chan struct{}
}

func (e slowEngine) Create(ctx context.Context, c *engine.Config) (engine.Container, error) {
	close(e.begun)
	<-e.ready
	return e.Engine.Create(ctx, c)
}

// TestCancelledCalls lets a client leave during Wait and Create. The container comes into being all the same, is told
// of, and can be deleted; its id is taken meanwhile.
func TestCancelledCalls(t *testing.T) {
	slow := slowEngine{forkEngine{theReaper()}, make(chan struct{}), make(chan struct{})}
	n := newNodeWith(t, func(rt *OCIRuntime) (engine.Engine, error) {
		if rt != nil {
			return slow, nil
		}
		return slow.Engine, nil
	})
	n.run(n.request("c", "sleep 1000"))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := n.Wait(ctx, "c"); !errdefs.IsDeadlineExceeded(err) {
		t.Errorf("wait: %v", err)
	}
	req := n.request("d", "sleep 1000")
	req.OCI = &OCIRuntime{}
	ctx, leave := context.WithCancel(t.Context())
	go func() {
		<-slow.begun
		leave()
	}()
	if _, err := n.Create(ctx, req); !errors.Is(err, context.Canceled) {
		t.Errorf("create: %v", err)
	}
	if _, err := n.State(t.Context(), "d"); !errdefs.IsNotFound(err) {
		t.Errorf("state of what is being made: %v", err)
	}
	if _, err := n.Create(t.Context(), n.request("d", "true")); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second create: %v", err)
	}
	ev, err := n.Events(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer ev.Close()
	deleted := make(chan error, 1)
	go func() { deleted <- n.Delete(t.Context(), "d") }() // waits for the create
	close(slow.ready)
	for _, want := range []string{"c started", "d created", "d stopped", "d deleted"} {
		e, err := ev.Next(t.Context())
		if err != nil || e.State.ID+" "+e.Type != want {
			t.Fatalf("%+v %v instead of %s", e, err, want)
		}
	}
	if err := <-deleted; err != nil {
		t.Error(err)
	}
}
