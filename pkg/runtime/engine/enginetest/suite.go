// Package enginetest is the one test suite that every engine passes: native, runc and crun.
//
// Each test asserts from inside the container, with busybox applets in a root file system made once, and from /proc and
// the cgroup file system outside. After each container its directory, mounts and cgroups must be gone, and after the
// suite no process, mount or fd may be left. What an engine's binary lacks is skipped by Caps, with the reason.
//
// The package's own external test runs it; a new engine adds an entry there.
package enginetest

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

// Feature is something that not every engine can do.
type Feature string

// What Caps.Lacks may name.
const (
	Domainname     Feature = "domainname"
	TimeNamespace  Feature = "time namespace"
	UserNamespace  Feature = "user namespace with id-mapped root"
	IDMappedMounts Feature = "id-mapped bind mounts"
	RecursiveRO    Feature = "recursive read-only mounts"
	Personality    Feature = "personality"
	Scheduler      Feature = "scheduler"
	IOPriority     Feature = "io priority"
	ExecveErrors   Feature = "errors of execve at start"
	MissingCwd     Feature = "making a missing cwd"
	CloseFds       Feature = "closing inherited fds"
	SharedRoot     Feature = "shared root propagation"
	ReadonlyFlags  Feature = "keeping the flags of read-only paths"
	HookErrors     Feature = "errors of startContainer hooks"
	PoststartHooks Feature = "poststart hooks after start"
	LatePids       Feature = "killing what outlives the first process"
	ExecSize       Feature = "console size before an exec runs"
)

// Caps describes the engine under test.
type Caps struct {
	// Cgroup: the engine wants Config.Cgroup (native); otherwise it makes Linux.CgroupsPath itself.
	Cgroup bool
	// Lacks gives the reason for each feature that the engine, or the binary behind it, does not have.
	Lacks map[Feature]string
}

// test is one entry of the suite.
type test struct {
	name  string
	needs []Feature
	run   func(t *testing.T, s *suite)
}

type suite struct {
	engine engine.Engine
	caps   Caps
	base   string // a directory for everything
	layer  string // the read-only root file system
	serial atomic.Int64
}

// deadline bounds each step of a test; a busy machine is slow, a hang is for ever.
var deadline = testns.Patience(30 * time.Second)

// Run runs the suite over the engine that open returns. The test binary must be in the namespaces of testns, be child
// subreaper, and own the only reaper.Reaper of the process.
func Run(t *testing.T, open func(t *testing.T) engine.Engine, caps Caps) {
	t.Helper()
	testns.Root(t)
	base, err := os.MkdirTemp(place(), "enginetest-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(base, 0o755); err != nil { // user namespaces pass through
		t.Fatal(err)
	}
	s := &suite{engine: open(t), caps: caps, base: base, layer: filepath.Join(base, "layer")}
	if err := makeLayer(s.layer); err != nil {
		t.Fatalf("root file system: %v", err)
	}
	before := take(t)
	t.Run("parallel", func(t *testing.T) {
		for _, list := range [][]test{
			lifeTests, killTests, namespaceTests, mountTests, bindTests, linkTests, propagationTests, pathTests, deviceTests,
			processTests, limitTests, privilegeTests, hookTests, stdioTests, ttyTests, execTests, failureTests, usernsTests, cgroupTests, adoptTests,
		} {
			for _, x := range list {
				s.one(t, x)
			}
		}
	})
	t.Run("50 at once", func(t *testing.T) { manyAtOnce(t, s, 50) })
	if e, ok := s.engine.(interface{ Release() }); ok {
		e.Release() // what it has made ahead
	}
	t.Run("nothing is left", func(t *testing.T) { before.compare(t) })
	removeCgroupParent(t)
	if err := os.RemoveAll(base); err != nil {
		t.Error(err)
	}
}

// place is the tmpfs on /run; before Linux 6.3, on which a tmpfs can't be mounted with mapped ids, a disk.
func place() string {
	var u unix.Utsname
	var major, minor int
	if err := unix.Uname(&u); err == nil {
		_, _ = fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor)
	}
	if major < 6 || major == 6 && minor < 3 {
		return os.TempDir()
	}
	return "/run"
}

func (s *suite) one(t *testing.T, x test) {
	t.Run(x.name, func(t *testing.T) {
		for _, f := range x.needs {
			s.need(t, f)
		}
		t.Parallel()
		x.run(t, s)
	})
}

// lacks reports that the engine has not got f, for a test that has more to look at.
func (s *suite) lacks(t *testing.T, f Feature) bool {
	t.Helper()
	why, lacks := s.caps.Lacks[f]
	if lacks {
		t.Logf("%s: no %s: %s", s.engine.Name(), f, why)
	}
	return lacks
}

// need skips the test when the engine has not got f.
func (s *suite) need(t *testing.T, f Feature) {
	t.Helper()
	if why, lacks := s.caps.Lacks[f]; lacks {
		t.Skipf("%s: no %s: %s", s.engine.Name(), f, why)
	}
}

// inventory is what must be the same before and after the suite.
type inventory struct {
	mounts   []string
	fds      int
	children []string
}

func take(t *testing.T) inventory {
	t.Helper()
	var v inventory
	for _, m := range mountsOf(t, os.Getpid()) {
		v.mounts = append(v.mounts, m.point)
	}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	v.fds = len(fds)
	lists, _ := filepath.Glob("/proc/self/task/*/children")
	for _, f := range lists {
		b, _ := os.ReadFile(f)
		v.children = append(v.children, strings.Fields(string(b))...)
	}
	return v
}

// compare waits a moment, since the kernel takes processes down in its own time, and then reports what is new.
func (v inventory) compare(t *testing.T) {
	t.Helper()
	var now inventory
	settled := eventually(func() bool {
		now = take(t)
		return slices.Equal(v.mounts, now.mounts) && now.fds <= v.fds && len(now.children) <= len(v.children)
	})
	if settled {
		return
	}
	for _, m := range now.mounts {
		if !slices.Contains(v.mounts, m) {
			t.Errorf("mount left: %s", m)
		}
	}
	for _, pid := range now.children {
		if !slices.Contains(v.children, pid) {
			line, _ := os.ReadFile("/proc/" + pid + "/cmdline")
			t.Errorf("process left: %s %q", pid, line)
		}
	}
	if now.fds > v.fds {
		entries, _ := os.ReadDir("/proc/self/fd")
		for _, e := range entries {
			to, _ := os.Readlink("/proc/self/fd/" + e.Name())
			t.Logf("fd %s -> %s", e.Name(), to)
		}
		t.Errorf("%d fds open, %d before", now.fds, v.fds)
	}
}

// eventually polls until ok or a few seconds have passed.
func eventually(ok func() bool) bool {
	for end := time.Now().Add(testns.Patience(10 * time.Second)); time.Now().Before(end); {
		if ok() {
			return true
		}
		var ts unix.Timespec
		ts.Nsec = int64(2 * time.Millisecond)
		_ = unix.Nanosleep(&ts, nil)
	}
	return ok()
}
