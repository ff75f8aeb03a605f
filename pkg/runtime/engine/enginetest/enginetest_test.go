package enginetest_test

import (
	"os"
	"os/exec"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine/enginetest"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine/native"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine/oci"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/reaper"
)

func TestMain(m *testing.M) { testns.Main(m) }

// theReaper is the one of this process, which is child subreaper as cri-monitor is.
var theReaper = sync.OnceValue(func() *reaper.Reaper {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		panic(err)
	}
	return reaper.New()
})

// binary skips the test when an OCI runtime is not installed.
func binary(t *testing.T, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("%s is not installed", name)
	}
	return path
}

func openOCI(path string) func(t *testing.T) engine.Engine {
	return func(t *testing.T) engine.Engine {
		root, err := os.MkdirTemp("/run", "oci-root-")
		if err != nil {
			t.Fatal(err)
		}
		n, err := native.New(theReaper())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { n.Close() })
		e, err := oci.New(oci.Config{Path: path, Root: root, UserNS: n.HoldUserNS}, theReaper())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			left, err := os.ReadDir(root)
			left = slices.DeleteFunc(left, func(f os.DirEntry) bool { return f.Name() == ".cache" }) // crun's seccomp filters
			if err != nil || len(left) > 0 {
				t.Errorf("left in the runtime's root: %v %v", left, err)
			}
			os.RemoveAll(root)
		})
		return e
	}
}

func TestNative(t *testing.T) {
	testns.Root(t)
	enginetest.Run(t, func(t *testing.T) engine.Engine {
		e, err := native.New(theReaper())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { e.Close() })
		return e
	}, enginetest.Caps{Cgroup: true})
}

func TestRunc(t *testing.T) {
	testns.Root(t)
	const old = "runc 1.1.5 speaks runtime-spec 1.0.2"
	enginetest.Run(t, openOCI(binary(t, "runc")), enginetest.Caps{Lacks: map[enginetest.Feature]string{
		enginetest.Domainname: old, enginetest.TimeNamespace: old, enginetest.IDMappedMounts: old,
		enginetest.Scheduler: old, enginetest.IOPriority: old, enginetest.Personality: old,
		enginetest.ExecveErrors:   "runc start returns before execve",
		enginetest.HookErrors:     "runc start returns before the hooks ran",
		enginetest.PoststartHooks: "runc 1.1 runs them at the end of create",
		enginetest.SharedRoot:     "runc 1.1 leaves the root private",
	}})
}

func TestCrun(t *testing.T) {
	testns.Root(t)
	path := binary(t, "crun")
	hideUnified(t)
	const old = "crun 1.8.1 speaks runtime-spec 1.0.0"
	enginetest.Run(t, openOCI(path), enginetest.Caps{Lacks: map[enginetest.Feature]string{
		enginetest.Domainname: old, enginetest.TimeNamespace: old, enginetest.IDMappedMounts: old,
		enginetest.Scheduler: old, enginetest.IOPriority: old, enginetest.Personality: old,
		enginetest.ExecSize:      "crun 1.8.1 does not set it, the engine does once it has the terminal",
		enginetest.ExecveErrors:  "crun start returns before execve",
		enginetest.HookErrors:    "crun start returns before the hooks ran",
		enginetest.ReadonlyFlags: "crun 1.8.1 drops nosuid, nodev and noexec",
	}})
}

// hideUnified takes the cgroup2 mount of a hybrid layout out of the test's mount namespace: crun refuses to run with it.
func hideUnified(t *testing.T) {
	const at = "/sys/fs/cgroup/unified"
	var st unix.Statfs_t
	if unix.Statfs(at, &st) != nil || st.Type != unix.CGROUP2_SUPER_MAGIC {
		return
	}
	if err := unix.Unmount(at, 0); err != nil {
		t.Fatal(err)
	}
	// What lies below is the host's tmpfs; runtimes would make directories in it.
	if err := unix.Mount("tmpfs", at, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, 0); err != nil {
			t.Errorf("unmount the cover of cgroup2: %v", err)
		}
		if err := unix.Mount("cgroup2", at, "cgroup2", 0, ""); err != nil {
			t.Errorf("mount cgroup2 again: %v", err)
		}
	})
}
