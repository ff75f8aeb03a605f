package netns

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/testns"
)

func TestMain(m *testing.M) { testns.Main(m) }

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func TestCreateAndRemove(t *testing.T) {
	testns.Root(t)
	own := inode(t, "/proc/self/ns/net")
	path, err := Create("/run/netns", "cri-one")
	if err != nil {
		t.Fatal(err)
	}
	if !Pinned(path) || Check(path) != nil || inode(t, path) == own {
		t.Errorf("pinned %v, check %v, inode %d, own %d", Pinned(path), Check(path), inode(t, path), own)
	}
	if _, err := Create("/run/netns", "cri-one"); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second create: %v", err)
	}
	if out, err := exec.Command("ip", "netns").CombinedOutput(); err != nil || !strings.Contains(string(out), "cri-one") {
		t.Errorf("ip netns: %v %s", err, out)
	}
	err = Do(path, func() error {
		lo, err := net.InterfaceByName("lo")
		if err != nil {
			return err
		}
		if lo.Flags&net.FlagUp == 0 {
			return errors.New("lo is down")
		}
		if b, err := os.ReadFile("/proc/sys/net/ipv6/conf/default/accept_dad"); err == nil && strings.TrimSpace(string(b)) != "0" {
			return fmt.Errorf("accept_dad is %s", b)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := Remove(path); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) || Pinned(path) {
		t.Errorf("still there: %v", err)
	}
}

func TestPin(t *testing.T) {
	testns.Root(t)
	dir := t.TempDir()
	defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
	path, err := PinPID(dir, "cri-self", os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if inode(t, path) != inode(t, "/proc/self/ns/net") {
		t.Error("another namespace is pinned")
	}
	if err := Remove(path); err != nil {
		t.Error(err)
	}
	mnt, err := os.Open("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	defer mnt.Close()
	if _, err := PinFD(dir, "cri-mnt", int(mnt.Fd())); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a mount namespace was taken: %v", err)
	}
	if _, err := PinPID(dir, "cri-none", 1<<30); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no process: %v", err)
	}
	if names, err := List(dir, ""); err != nil || len(names) != 0 {
		t.Errorf("left: %v %v", names, err)
	}
}

func TestBadNames(t *testing.T) {
	testns.Root(t)
	for _, name := range []string{"", ".", "..", "a/b", "/x", ".hidden"} {
		if _, err := Create("/run/netns", name); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestStale(t *testing.T) {
	testns.Root(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "cri-stale")
	if err := os.WriteFile(file, nil, 0o444); err != nil {
		t.Fatal(err)
	}
	if err := Check(file); !errdefs.IsNotFound(err) { // a pin that was cut short: Detach must not fail on it for ever
		t.Errorf("check of an empty file: %v", err)
	}
	if _, err := Create(dir, "cri-stale"); err != nil {
		t.Errorf("a crash's left-over is in the way: %v", err)
	}
	if err := Remove(file); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(file, []byte("precious"), 0o444); err != nil {
		t.Fatal(err)
	}
	if _, err := Create(dir, "cri-stale"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a file with content was replaced: %v", err)
	}
	if err := Remove(file); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a file with content was removed: %v", err)
	}
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		t.Error(err)
	}
}

func TestParallel(t *testing.T) {
	testns.Root(t)
	own := inode(t, "/proc/self/ns/net")
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			path, err := Create("/run/netns", fmt.Sprintf("cri-p%d", i))
			if err != nil {
				t.Error(err)
				return
			}
			if err := Do(path, func() error { return nil }); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	names, err := List("/run/netns", "cri-p")
	if err != nil || len(names) != 64 {
		t.Errorf("%d namespaces, %v", len(names), err)
	}
	seen := map[uint64]bool{own: true}
	for _, n := range names {
		path := filepath.Join("/run/netns", n)
		if i := inode(t, path); seen[i] {
			t.Errorf("%s is not a namespace of its own", n)
		} else {
			seen[i] = true
		}
		if err := Remove(path); err != nil {
			t.Error(err)
		}
	}
	// Every thread is back home.
	tasks, err := filepath.Glob("/proc/self/task/*/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		var st unix.Stat_t
		if unix.Stat(task, &st) == nil && st.Ino != own {
			t.Errorf("%s is in a foreign namespace", task)
		}
	}
}

func BenchmarkCreateRemove(b *testing.B) {
	testns.Root(b)
	for i := 0; b.Loop(); i++ {
		path, err := Create("/run/netns", fmt.Sprintf("cri-b%d", i))
		if err != nil {
			b.Fatal(err)
		}
		if err := Remove(path); err != nil {
			b.Fatal(err)
		}
	}
}

func TestPrepared(t *testing.T) {
	testns.Root(t)
	made, err := Create("/run/netns", "cri-made")
	if err != nil {
		t.Fatal(err)
	}
	pinned, err := PinPID("/run/netns", "cri-pinned", os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if !Prepared(made) || Prepared(pinned) || !Pinned(pinned) {
		t.Errorf("made: %v; pinned: %v, %v", Prepared(made), Prepared(pinned), Pinned(pinned))
	}
	for _, p := range []string{made, pinned} {
		if err := Remove(p); err != nil {
			t.Error(err)
		}
	}
	if Prepared(made) {
		t.Error("after its removal")
	}
}

// TestTakeSocket: the socket that Create opens is in the namespace, is handed out once, and goes with the namespace otherwise.
func TestTakeSocket(t *testing.T) {
	testns.Root(t)
	open := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	before := open()
	for _, take := range []bool{true, false} {
		path, err := Create("/run/netns", "cri-socket")
		if err != nil {
			t.Fatal(err)
		}
		if take {
			fd := TakeSocket(path)
			var own, in unix.Stat_t
			ns, err := unix.IoctlRetInt(fd, unix.SIOCGSKNS)
			if err != nil {
				t.Fatal(err)
			}
			if unix.Fstat(ns, &own) != nil || unix.Stat(path, &in) != nil || own.Ino != in.Ino {
				t.Errorf("the socket is in namespace %d, not in %d", own.Ino, in.Ino)
			}
			if again := TakeSocket(path); again >= 0 {
				t.Errorf("handed out again: %d", again)
			}
			unix.Close(ns)
			unix.Close(fd)
		}
		if err := Remove(path); err != nil {
			t.Fatal(err)
		}
		if fd := TakeSocket(path); fd >= 0 {
			t.Error("of a namespace that is gone")
		}
	}
	if after := open(); after != before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

// TestHomeLater: that no file could be opened once is not for good.
func TestHomeLater(t *testing.T) {
	own.Lock()
	former := own.fd
	own.fd = 0
	own.Unlock()
	defer func() {
		if former > 0 {
			_ = unix.Close(former)
		}
	}()
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	_, err := home()
	if rerr := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); rerr != nil {
		t.Fatal(rerr)
	}
	if !errors.Is(err, unix.EMFILE) {
		t.Errorf("without a descriptor: %v", err)
	}
	if fd, err := home(); err != nil || fd <= 0 {
		t.Errorf("then: %d %v", fd, err)
	}
}
