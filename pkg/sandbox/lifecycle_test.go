package sandbox

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/cgroupdriver"
	"github.com/seed-9a14075a/cri-server/pkg/network"
	"github.com/seed-9a14075a/cri-server/pkg/network/netns"
	"github.com/seed-9a14075a/cri-server/pkg/operation"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/monitor"
)

// fakeMonitor knows of deletions only.
type fakeMonitor struct {
	Monitor
	deleted []string
	err     error
}

func (m *fakeMonitor) Delete(_ context.Context, id string) error {
	m.deleted = append(m.deleted, id)
	return m.err
}

// fakeCgroups has cgroups that can be listed and deleted.
type fakeCgroups struct {
	cgroupdriver.Driver
	paths, deleted []string
}

func (c *fakeCgroups) List() ([]string, error) { return c.paths, nil }

func (c *fakeCgroups) Delete(_ context.Context, path string) error {
	c.deleted = append(c.deleted, path)
	return nil
}

func openFake(t *testing.T, dir string) (*Sandboxes, *fakeMonitor, *fakeCgroups) {
	t.Helper()
	s := openEmpty(t, dir)
	m, c := &fakeMonitor{}, &fakeCgroups{}
	s.cfg.Monitor, s.cfg.Cgroups = m, c
	return s, m, c
}

func TestCreatingIsNobodysToName(t *testing.T) {
	s := openEmpty(t, t.TempDir())
	s.set(podOf("abc", Creating))
	for _, id := range []string{"abc", "a"} {
		if _, err := s.Get(id); !errdefs.IsNotFound(err) {
			t.Errorf("get %q: %v", id, err)
		}
	}
	if !s.Known("abc") || !s.Live()["abc"] || len(s.List()) != 0 {
		t.Error("it must be known to the sweepers, and not be listed")
	}
}

// The clock is set back between two attempts of a pod: kubelet goes by the newest, which must be the later one.
func TestClockSetBack(t *testing.T) {
	s := openEmpty(t, t.TempDir())
	old := podOf("abc", NotReady)
	old.CreatedAt = time.Now().Add(3 * time.Hour)
	s.set(old)
	if at := s.createdAt(old.Config.Metadata.Uid); !at.After(old.CreatedAt) {
		t.Errorf("created at %v, the attempt before at %v", at, old.CreatedAt)
	}
	if at := s.createdAt("another"); time.Since(at) < 0 || time.Since(at) > time.Hour {
		t.Errorf("another pod: %v", at)
	}
}

// What a failed run could not take down is listed, can be removed, and does not block its pod's name.
func TestLeftovers(t *testing.T) {
	s, m, _ := openFake(t, t.TempDir())
	ctx := context.Background()
	sb := podOf("aa", Creating)
	if err := s.save(sb); err != nil {
		t.Fatal(err)
	}
	s.set(sb)
	m.err = errdefs.ErrUnavailable
	if err := s.discard(ctx, sb); !errdefs.IsUnavailable(err) {
		t.Fatalf("discard: %v", err)
	}
	if list := s.List(); len(list) != 1 || list[0].State != NotReady {
		t.Fatalf("listed: %v", list)
	}
	if e, err := s.records.Get("aa"); err != nil || e.State != Creating {
		t.Errorf("the next start must know that it was not finished: %v, %v", e.State, err)
	}
	key := Key(sb.Config.Metadata)
	if got, err := s.existing(ctx, key, sb.Config, ""); got != nil || !errdefs.IsUnavailable(err) {
		t.Errorf("a retry while it can't be taken down: %v, %v", got, err)
	}
	m.err = nil
	if got, err := s.existing(ctx, key, sb.Config, ""); got != nil || err != nil {
		t.Errorf("a retry when it can: %v, %v", got, err)
	}
	if s.Known("aa") {
		t.Error("it is still there")
	}
}

func TestPauseDiesBeforeReady(t *testing.T) {
	s := openEmpty(t, t.TempDir())
	s.set(podOf("aa", Creating))
	if !s.PauseExited("aa") {
		t.Error("a sandbox being created is not known")
	}
	ready := podOf("aa", Ready)
	if err := s.publish(ready); !errdefs.IsAborted(err) {
		t.Errorf("publish: %v", err)
	}
	s.drop(ready)
	if len(s.died) != 0 {
		t.Error("remembered for ever")
	}
}

func TestKeptResultOfWhatIsDown(t *testing.T) {
	s := openEmpty(t, t.TempDir())
	sb := podOf("aa", Ready)
	key := "run " + Key(sb.Config.Metadata)
	ctx, cancel := context.WithCancel(context.Background())
	begun, end := make(chan bool), make(chan bool)
	gone := make(chan error, 1)
	go func() {
		_, err := operation.Do(ctx, s.ops, key, 0, func(context.Context, *operation.Op) (*Sandbox, error) {
			close(begun)
			<-end
			return sb, s.publish(sb)
		})
		gone <- err
	}()
	<-begun
	cancel()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	close(end)
	for s.ops.Active(key) {
		time.Sleep(time.Millisecond)
	}
	if !s.PauseExited("aa") {
		t.Fatal("not known")
	}
	_, err := operation.Do(context.Background(), s.ops, key, 0, func(context.Context, *operation.Op) (*Sandbox, error) {
		return nil, errdefs.ErrAlreadyExists // what existing says
	})
	if !errdefs.IsAlreadyExists(err) {
		t.Errorf("a retry was told that it is ready: %v", err)
	}
}

// Going down must be possible when nothing can be recorded.
func TestGoingDownWithoutRecords(t *testing.T) {
	dir := t.TempDir()
	s, m, c := openFake(t, dir)
	sb := podOf("aa", Ready)
	sb.CgroupPath = "/pod/aa"
	if err := s.publish(sb); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "records")); err != nil {
		t.Fatal(err)
	}
	if err := s.Retire("aa"); err != nil {
		t.Errorf("retire: %v", err)
	}
	if err := s.Stop(context.Background(), "aa"); err != nil || len(m.deleted) != 1 || len(c.deleted) != 1 {
		t.Errorf("stop: %v; deleted %q and %q", err, m.deleted, c.deleted)
	}
	if got, err := s.Get("aa"); err != nil || !got.Released || got.State != NotReady {
		t.Errorf("%v, %v", got, err)
	}
}

// A start takes down nothing that it was not told to stop, and knows the stops that were cut short.
func TestRecoverOfNotReady(t *testing.T) {
	dir := t.TempDir()
	s := openEmpty(t, dir)
	for id, stopping := range map[string]bool{"aa": false, "bb": true} {
		sb := podOf(id, NotReady)
		sb.Stopping = stopping
		if err := s.save(sb); err != nil {
			t.Fatal(err)
		}
	}
	again, m, _ := openFake(t, dir)
	if err := again.Recover(context.Background(), map[string]monitor.State{}); err != nil {
		t.Fatal(err)
	}
	if ids := again.Unfinished(); len(ids) != 1 || ids[0] != "bb" {
		t.Errorf("unfinished: %q", ids)
	}
	if len(m.deleted) != 0 {
		t.Errorf("taken down: %q", m.deleted)
	}
}

func TestBrokenGoesWithItsCgroup(t *testing.T) {
	s, _, c := openFake(t, t.TempDir())
	sb := podOf("aa", NotReady)
	sb.Broken = "cut short"
	s.set(sb)
	c.paths = []string{"/pods/x/aa", "/pods/y/bb"}
	if err := s.Remove(context.Background(), "aa"); err != nil {
		t.Fatal(err)
	}
	if len(c.deleted) != 1 || c.deleted[0] != "/pods/x/aa" {
		t.Errorf("deleted: %q", c.deleted)
	}
}

func TestOddHostFiles(t *testing.T) {
	dir := t.TempDir()
	fifo, to := filepath.Join(dir, "fifo"), filepath.Join(dir, "to")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, from := range []string{fifo, dir, "/dev/zero"} {
		if err := copyHostFile(from, to); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s: %v", from, err)
		}
	}
	if err := os.Symlink("nowhere", filepath.Join(dir, "dangling")); err != nil {
		t.Fatal(err)
	}
	for _, from := range []string{filepath.Join(dir, "missing"), filepath.Join(dir, "dangling")} {
		if b, err := os.ReadFile(to); copyHostFile(from, to) != nil || err == nil && len(b) != 0 {
			t.Errorf("%s does not count as empty: %q, %v", from, b, err)
		}
	}
}

// programs are a network whose plugins are programs: they enter the namespace by themselves.
type programs struct{ network.Network }

func (programs) Attach(context.Context, network.Pod) (*network.Result, error) {
	return &network.Result{}, nil
}

// The socket that a network namespace comes with does not stay open where nobody has taken it.
func TestSocketOfNamespace(t *testing.T) {
	testns.Root(t)
	s := openEmpty(t, t.TempDir())
	s.cfg.NetnsDir, s.cfg.Network, s.cfg.ShmSize = "/run/netns", programs{}, 1<<20
	sb := podOf("aa", Creating)
	sb.NetNS = filepath.Join(s.cfg.NetnsDir, network.Prefix+sb.ID)
	sb.Files.Dir = s.dir(sb.ID)
	if err := s.connect(t.Context(), sb, make(chan struct{})); err != nil {
		t.Fatal(err)
	}
	if fd := netns.TakeSocket(sb.NetNS); fd >= 0 {
		t.Error("a socket is open as long as the pod")
		_ = unix.Close(fd)
	}
	if err := errors.Join(netns.Remove(sb.NetNS), removeFiles(sb.Files)); err != nil {
		t.Error(err)
	}
}
