package native

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// mounts returns the lines of a process's mountinfo.
func mounts(t *testing.T, pid int) []string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSpace(string(b)), "\n")
}

// Neither the nursery nor a stub that waits has anything of the host's in reach; a hook's container has until pivot_root.
func TestNurserySeesNothing(t *testing.T) {
	b := newBed(t)
	ct := b.create(t, b.config(t, newSpec("/bin/true")))
	nursery := b.nursery.stub.child.Pid()
	root := fmt.Sprintf("/proc/%d/root", nursery)
	if entries, err := os.ReadDir(root); err != nil || len(entries) > 0 {
		t.Errorf("%s: %v %v", root, entries, err)
	}
	if err := os.WriteFile(filepath.Join(root, "x"), nil, 0o600); err == nil {
		t.Errorf("%s can be written to", root)
	}
	if m := mounts(t, nursery); len(m) != 1 || !strings.Contains(m[0], " / / ro,") {
		t.Errorf("mounts: %q", m)
	}
	// A stub that waits, and is prepared, is in its container's root.
	if _, err := ct.Save(); err != nil {
		t.Fatal(err)
	}
	var is, want unix.Stat_t
	pid := ct.Process().Pid()
	if err := unix.Stat(fmt.Sprintf("/proc/%d/root/bin/busybox", pid), &is); err != nil {
		t.Error(err)
	}
	if err := unix.Stat(filepath.Join(b.layer, "bin/busybox"), &want); err != nil || is.Size != want.Size {
		t.Errorf("%d bytes, want %d (%v)", is.Size, want.Size, err)
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d/root", pid) + b.layer); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the host's files show: %v", err)
	}
}

// Whoever kills the nursery stops nobody: the next fork has another.
func TestNurseryIsReplaced(t *testing.T) {
	b := newBed(t)
	old := b.nursery.stub
	if err := unix.PidfdSendSignal(old.pidfd, unix.SIGKILL, nil, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := old.child.Wait(testContext(t)); err != nil {
		t.Fatal(err)
	}
	has(t, b.sh(t, newSpec(), "echo well"), "well")
	if b.nursery.stub == old {
		t.Error("the nursery is the old one")
	}
}

func TestNurseryEndsWithEngine(t *testing.T) {
	b := newBed(t)
	e, err := New(b.reaper)
	if err != nil {
		t.Fatal(err)
	}
	child := e.nursery.stub.child
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := child.Wait(testContext(t)); err != nil {
		t.Error("the nursery lives on")
	}
}

func umask(of string) string {
	b, _ := os.ReadFile("/proc/" + of + "/status")
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "Umask:") {
			return line
		}
	}
	return ""
}

// A thread that a container was built on is as every other again.
func TestThreadComesBack(t *testing.T) {
	b := newBed(t)
	tid := 0
	look := func() error {
		tid = unix.Gettid()
		for _, ns := range []string{"mnt", "net", "ipc", "uts", "pid", "cgroup", "user"} {
			is, _ := os.Readlink("/proc/thread-self/ns/" + ns)
			want, err := os.Readlink("/proc/self/ns/" + ns)
			if is != want || err != nil {
				t.Errorf("%s, want %s (%v)", is, want, err)
			}
		}
		var is, want unix.Stat_t
		if err := unix.Stat("/", &is); err != nil {
			return err
		}
		if err := unix.Fstat(int(b.home.Fd()), &want); err != nil || is.Ino != want.Ino || is.Dev != want.Dev {
			t.Errorf("another root: %v", err)
		}
		if is, want := umask("thread-self"), umask("self"); is != want || is == "" {
			t.Errorf("%s, want %s", is, want)
		}
		return nil
	}
	rested := func() { // who waits for a job does not wait for its thread
		for idle := false; !idle; runtime.Gosched() {
			b.threads.mu.Lock()
			idle = len(b.threads.idle) > 0
			b.threads.mu.Unlock()
		}
	}
	var builder int
	for range 3 {
		has(t, b.sh(t, newSpec(), "echo well"), "well")
		rested()
		if err := b.threads.run(look, func() bool { return true }); err != nil {
			t.Fatal(err)
		}
		rested()
		if builder != 0 && builder != tid {
			t.Errorf("thread %d, before %d", tid, builder)
		}
		builder = tid
	}
	c := b.config(t, newSpec("/bin/true"))
	c.Rootfs.Lower = []string{"/no/such/layer"}
	if _, err := b.Create(testContext(t), c); err == nil {
		t.Fatal("created")
	}
	if err := b.threads.run(look, func() bool { return true }); err != nil {
		t.Fatal(err)
	}
	if tid == builder {
		t.Error("the thread of a failure was kept")
	}
}

func TestThreadsAreFew(t *testing.T) {
	var pool threads
	const parallel = 16
	var wg sync.WaitGroup
	all := make(chan struct{})
	for range parallel {
		wg.Go(func() {
			_ = pool.run(func() error { <-all; return nil }, func() bool { return true })
		})
	}
	close(all)
	wg.Wait()
	pool.mu.Lock()
	n := len(pool.idle)
	pool.mu.Unlock()
	if n > maxIdle {
		t.Errorf("%d idle threads", n)
	}
	pool.close()
	if len(pool.idle) > 0 {
		t.Error("idle threads after close")
	}
	if err := pool.run(func() error { return unix.EPERM }, func() bool { return true }); err != unix.EPERM {
		t.Errorf("after close: %v", err)
	}
	pool.close()
}
