package cgroupdriver

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

func TestMain(m *testing.M) { testns.Main(m) }

func p[T any](v T) *T { return &v }

func create(t *testing.T, d *fixture, res *specs.LinuxResources) (string, *engine.Cgroup) {
	t.Helper()
	path, err := d.Path("", "c1")
	if err != nil {
		t.Fatal(err)
	}
	cg, err := d.Create(t.Context(), path, res)
	if err != nil {
		t.Fatal(err)
	}
	return path, cg
}

// spawn runs a script in cg; it joins by itself.
func spawn(t *testing.T, cg *engine.Cgroup, script string) *exec.Cmd {
	t.Helper()
	return spawnWith(t, cg, nil, script)
}

func spawnWith(t *testing.T, cg *engine.Cgroup, stdin *os.File, script string) *exec.Cmd {
	t.Helper()
	c := exec.Command("sh", "-c", `for d in $DIRS; do echo 0 > $d/cgroup.procs || exit 99; done; exec sh -c "$0"`, script)
	c.Env = append(os.Environ(), "DIRS="+strings.Join(all(cg), " "))
	if stdin != nil {
		c.Stdin = stdin
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if c.ProcessState == nil {
			_ = c.Process.Kill()
			_ = c.Wait()
		}
	})
	return c
}

// until polls for an event.
func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(testns.Patience(10 * time.Second)); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for: %s", what)
		}
	}
}

func value(t *testing.T, dir, file string) string {
	t.Helper()
	s, err := read(dir, file)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestCreateRollsBack(t *testing.T) {
	d := needs(t, "cpuset")
	path, _ := d.Path("", "c1")
	_, err := d.Create(t.Context(), path, &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "4000"}})
	if !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("error %v", err)
	}
	if _, err := d.Load(path); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("something is left: %v", err)
	}
}

func TestCreateTwice(t *testing.T) {
	d := driver(t)
	path, cg := create(t, d, nil)
	if _, err := d.Create(t.Context(), path, nil); err != nil {
		t.Errorf("own cgroup: %v", err)
	}
	other := fixtureOf(t, "another")
	c := spawn(t, cg, "sleep 100")
	until(t, "the process to join", func() bool { pids, _ := procs(filepath.Join(d.primary(), path)); return len(pids) > 0 })
	if _, err := other.Create(t.Context(), path, nil); !errors.Is(err, errdefs.ErrAlreadyExists) {
		t.Errorf("a foreign cgroup in use: %v", err)
	}
	_ = c.Process.Kill()
	_ = c.Wait()
}

func TestListShowsOwnOnly(t *testing.T) {
	d := driver(t)
	path, _ := create(t, d, nil)
	other := fixtureOf(t, "another")
	foreign, _ := d.Path("", "c2")
	if _, err := other.Create(t.Context(), foreign, nil); err != nil {
		t.Fatal(err)
	}
	stranger := filepath.Join(d.primary(), filepath.Dir(path), strings.Repeat("a", 64))
	if err := os.Mkdir(stranger, 0o755); err != nil {
		t.Fatal(err)
	}
	defer unix.Rmdir(stranger)
	got, err := d.List()
	if err != nil || !slices.Equal(got, []string{path}) {
		t.Errorf("got %v, %v; want %v", got, err, path)
	}
}

func TestSessionIsKilledAlone(t *testing.T) {
	d := driver(t)
	path, cg := create(t, d, nil)
	main := spawn(t, cg, "sleep 100")
	until(t, "the process to join", func() bool { return joined(d, path, main) })
	d.Settle(path, 0)
	sub, err := d.Create(t.Context(), path+"/exec-1", nil)
	if err != nil {
		t.Fatal(err)
	}
	differ := 0
	for i, dir := range all(sub) {
		if dir != all(cg)[i] {
			differ++
		}
	}
	if differ != 1 {
		t.Errorf("the session has %d directories of its own, want 1", differ)
	}
	session := spawn(t, sub, "sleep 100 & sleep 100")
	own := filepath.Join(d.primary(), path, "exec-1")
	until(t, "the session to run", func() bool { ps, _ := procs(own); return len(ps) >= 2 })
	if err := d.Kill(t.Context(), path+"/exec-1"); err != nil {
		t.Fatal(err)
	}
	_ = session.Wait()
	if err := d.Delete(t.Context(), path+"/exec-1"); err != nil {
		t.Error(err)
	}
	if err := main.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("the container's own process died with the session: %v", err)
	}
	_, err = d.Create(t.Context(), path+"/exec-2", &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: p(int64(1))}})
	if !errors.Is(err, errdefs.ErrNotImplemented) {
		t.Errorf("limits for a session: %v", err)
	}
}

func TestDeleteTakesWhatCreateMade(t *testing.T) {
	d := driver(t)
	if d.Name() != "cgroupfs" {
		t.Skip("slices are systemd's")
	}
	foreign := filepath.Join(d.primary(), testns.CgroupParent())
	if err := os.Mkdir(foreign, 0o755); err != nil {
		t.Fatal(err)
	}
	var paths []string
	for _, id := range []string{"c1", "c2"} {
		path, _ := d.Path(testns.CgroupParent()+"/a/b", id)
		if _, err := d.Create(t.Context(), path, nil); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	for i, left := range []bool{true, false} {
		if err := d.Delete(t.Context(), paths[i]); err != nil {
			t.Fatal(err)
		}
		if _, err := d.Load(testns.CgroupParent() + "/a"); (err == nil) != left {
			t.Errorf("after %d deletions the parent is there: %v, want %v", i+1, err == nil, left)
		}
	}
	if _, err := os.Stat(foreign); err != nil {
		t.Errorf("a parent that others made is gone: %v", err)
	}
}

func TestCreateAndDeleteInParallel(t *testing.T) {
	d := driver(t)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 20 {
				path, _ := d.Path(d.below("a"), "c"+strconv.Itoa(i))
				if _, err := d.Create(t.Context(), path, nil); err != nil {
					t.Error(err)
				}
				if err := d.Delete(t.Context(), path); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// TestParentGoesMeanwhile: a sibling's Delete takes a parent away that is made this moment, has no child yet, and as a cpuset is
// not filled yet.
func TestParentGoesMeanwhile(t *testing.T) {
	d := v1(t, "cpuset")
	above := testns.CgroupParent() + "/a"
	dir := filepath.Join(d.v1[d.hierarchy["cpuset"]], above)
	var left atomic.Int32 // removals, for this container
	ctx, cancel := context.WithCancel(t.Context())
	var sibling sync.WaitGroup
	sibling.Go(func() {
		for ctx.Err() == nil {
			if left.Load() > 0 && unix.Rmdir(dir) == nil {
				left.Add(-1)
			}
		}
	})
	for i := range 500 {
		path := above + "/c" + strconv.Itoa(i)
		left.Store(3)
		if _, err := d.cgroupfs.Create(t.Context(), path, nil); err != nil {
			t.Errorf("container %d: %v", i, err)
		}
		if err := d.cgroupfs.Delete(t.Context(), path); err != nil {
			t.Error(err)
		}
	}
	cancel()
	sibling.Wait()
}

// churn keeps forking: twenty shells, each with one short child after the other.
const churn = "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do (while :; do sleep 0.02; done) & done; wait"

func TestDeleteUnderLoad(t *testing.T) {
	d := needs(t, "pids")
	path, cg := create(t, d, &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: p(int64(100))}})
	if _, err := d.Create(t.Context(), path+"/exec-1", nil); err != nil {
		t.Fatal(err)
	}
	c := spawn(t, cg, churn)
	until(t, "load", func() bool { ps, err := d.processes(path); return err == nil && len(ps) > 20 })
	if err := d.Delete(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait()
	if _, err := d.Load(path); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("still there: %v", err)
	}
	if _, err := d.Stats(path); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("stats of a deleted cgroup: %v", err)
	}
	if err := d.Delete(t.Context(), path); err != nil {
		t.Errorf("delete a second time: %v", err)
	}
	if err := d.Kill(t.Context(), path); err != nil {
		t.Errorf("kill what is gone: %v", err)
	}
}

func TestKillWithoutCgroupKill(t *testing.T) {
	d := v1(t, "freezer", "pids")
	plain := *d.layout
	plain.unified = ""
	d.layout = &plain
	path, cg := create(t, d, &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: p(int64(100))}})
	c := spawn(t, cg, churn)
	until(t, "load", func() bool { ps, err := d.processes(path); return err == nil && len(ps) > 20 })
	if err := d.Kill(t.Context(), path); err != nil {
		t.Error(err)
	}
	_ = c.Wait()
	if err := d.Delete(t.Context(), path); err != nil {
		t.Error(err)
	}
}

func TestPath(t *testing.T) {
	d := &cgroupfs{parent: "/cri-server"}
	for _, c := range []struct {
		parent, id, want string
		err              error
	}{
		{"", "a", "/cri-server/a", nil},
		{"/kubepods/burstable/pod1", "a", "/kubepods/burstable/pod1/a", nil},
		{"kubepods/", "a", "/kubepods/a", nil},
		{"/kubepods.slice/kubepods-pod1.slice", "a", "", errdefs.ErrInvalidArgument},
		{"system.slice:cri:x", "a", "", errdefs.ErrInvalidArgument},
		{"/a/../..", "a", "", errdefs.ErrInvalidArgument},
		{"/a/cgroup.procs", "a", "", errdefs.ErrInvalidArgument},
		{"/a", "", "", errdefs.ErrInvalidArgument},
		{"/a", "..", "", errdefs.ErrInvalidArgument},
		{"/a", "b/c", "", errdefs.ErrInvalidArgument},
	} {
		got, err := d.Path(c.parent, c.id)
		if got != c.want || !errors.Is(err, c.err) {
			t.Errorf("%q %q: %q, %v; want %q, %v", c.parent, c.id, got, err, c.want, c.err)
		}
	}
	for _, bad := range []string{"", "/", "..", "/a/../b"} {
		if err := d.Kill(t.Context(), bad); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("kill %q: %v", bad, err)
		}
		if err := d.Delete(t.Context(), bad); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("delete %q: %v", bad, err)
		}
	}
}

func TestNew(t *testing.T) {
	if _, err := New(Config{Driver: "systemd"}); !systemdBooted() && !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("systemd without systemd: %v", err)
	}
	if _, err := New(Config{Driver: "cgroupfs", DefaultParent: "system.slice"}); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("a slice for cgroupfs: %v", err)
	}
	if _, err := New(Config{Driver: "other"}); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("unknown: %v", err)
	}
	if _, err := New(Config{Root: t.TempDir()}); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("no mounts: %v", err)
	}
}

// What Begin has begun and nobody finishes, Delete takes away.
func TestBeginIsUndone(t *testing.T) {
	f := driver(t)
	d, ok := f.under.(*cgroupfs)
	if !ok { // systemd makes all of it
		return
	}
	path, err := f.Path("", "begun")
	if err != nil {
		t.Fatal(err)
	}
	cg, finish, err := d.Begin(t.Context(), path, nil)
	if err != nil || finish == nil {
		t.Fatal(finish != nil, err)
	}
	for name, dir := range cg.V1 {
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is there too early: %v", name, err)
		}
	}
	if _, err := os.Stat(cg.Unified); len(cg.V1) > 0 && cg.Unified != "" && err != nil {
		t.Errorf("nothing to fork into: %v", err)
	}
	if err := d.Delete(t.Context(), path); err != nil {
		t.Error(err)
	}
	if _, err := d.Load(path); !errdefs.IsNotFound(err) {
		t.Errorf("after Delete: %v", err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := finish(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("finished: %v", err)
	}
}
