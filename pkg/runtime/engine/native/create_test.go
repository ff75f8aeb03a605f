package native

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

// TestWaitingStub looks at the stub between Create and Start.
func TestWaitingStub(t *testing.T) {
	b := newBed(t)
	for _, userns := range []bool{false, true} {
		spec := newSpec("/bin/true")
		if userns {
			withUserNS(spec)
		}
		ct := b.create(t, b.config(t, spec))
		proc := fmt.Sprintf("/proc/%d/", ct.Process().Pid())
		if exe, err := os.Readlink(proc + "exe"); err != nil || !strings.HasPrefix(exe, "/memfd:cri-stub") {
			t.Errorf("exe: %s %v", exe, err)
		}
		if f, err := os.OpenFile(proc+"exe", os.O_RDWR, 0); err == nil {
			f.Close()
			t.Error("the stub's image can be written")
		}
		var st unix.Stat_t // a process that is not dumpable belongs to the host's root in proc (proc(5))
		if err := unix.Stat(proc+"mem", &st); err != nil || st.Uid != 0 {
			t.Errorf("dumpable: owner %d %v", st.Uid, err)
		}
		fds, err := os.ReadDir(proc + "fd")
		for end := time.Now().Add(10 * time.Second); err == nil && len(fds) > 4 && time.Now().Before(end); { // closed after the answer
			runtime.Gosched()
			fds, err = os.ReadDir(proc + "fd")
		}
		if err != nil || len(fds) != 4 { // 0-2 and the socket
			t.Errorf("descriptors: %v %v", fds, err)
		}
		if b, err := os.ReadFile(proc + "environ"); err != nil || len(b) != 0 {
			t.Errorf("environment: %q %v", b, err)
		}
	}
}

// TestInside is what a container sees of its surroundings.
func TestInside(t *testing.T) {
	b := newBed(t)
	for _, userns := range []bool{false, true} {
		spec := newSpec()
		if userns {
			withUserNS(spec)
		}
		lines := b.sh(t, spec, `cd /proc/self/fd; echo fds *; cut -d" " -f4,5,10,11 /proc/self/mountinfo; head -c1 /proc/kcore | wc -c
ls /proc/acpi /sys/firmware | wc -l; readlink /dev/ptmx; stat -c "%n %t:%T %a %u" /dev/null; touch /proc/sys/kernel/x 2>&1; hostname; echo x > /dev/null && echo ok`)
		has(t, lines, "fds 0 1 2 3", "0", "pts/ptmx", "/dev/null 1:3 666 0", "box", "ok") // 3 is the shell's own, of the directory
		host := filepath.Dir(b.layer)
		for _, l := range lines {
			if strings.Contains(l, host) || strings.Contains(l, "upperdir=/run") {
				t.Errorf("a path of the host shows: %s", l)
			}
		}
	}
}

// children are this process's, whichever thread's: those of one that ends become another's, so that the lists of the threads
// are no picture of one moment.
func children() string {
	var all []string
	names, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, name := range names {
		b, _ := os.ReadFile(name)
		var pid, parent int
		var state string
		at := strings.LastIndexByte(string(b), ')') + 1
		if _, err := fmt.Sscan(string(b[at:]), &state, &parent); err == nil && parent == os.Getpid() {
			_, _ = fmt.Sscan(string(b), &pid)
			all = append(all, strconv.Itoa(pid))
		}
	}
	return strings.Join(all, " ")
}

// TestCreateLeavesNothing fails at each stage and counts what is left: processes, descriptors, files.
func TestCreateLeavesNothing(t *testing.T) {
	b := newBed(t)
	fds := func() int {
		n, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(n)
	}
	childrenBefore := children() // the nursery
	for name, change := range map[string]func(*engine.Config){
		"layer":             func(c *engine.Config) { c.Rootfs.Lower = append(c.Rootfs.Lower, "/no/such/layer") },
		"source":            func(c *engine.Config) { bindFrom(c.Spec, "/no/such/source") },
		"cgroup":            func(c *engine.Config) { c.Cgroup = &engine.Cgroup{V1: map[string]string{"pids": "/no/such/cgroup"}} },
		"cgroup2":           func(c *engine.Config) { c.Cgroup = &engine.Cgroup{Unified: "/no/such/cgroup"} },
		"unfinished cgroup": func(c *engine.Config) { lateCgroup(c, func() error { return unix.EDQUOT }) },
		"no late cgroup":    func(c *engine.Config) { lateCgroup(c, func() error { return nil }) },
		"layer, late cgroup": func(c *engine.Config) {
			c.Rootfs.Lower = []string{"/no/such/layer"}
			lateCgroup(c, func() error { return nil })
		},
		"fs": func(c *engine.Config) {
			c.Spec.Mounts = append(c.Spec.Mounts, specs.Mount{Destination: "/x", Type: "nosuchfs"})
		},
		"sysctl": func(c *engine.Config) { c.Spec.Linux.Sysctl = map[string]string{"net.ipv4.no_such": "1"} },
		"hook": func(c *engine.Config) {
			c.Spec.Hooks = &specs.Hooks{CreateContainer: []specs.Hook{{Path: "/bin/false"}}}
		},
		"map": func(c *engine.Config) {
			withUserNS(c.Spec)
			c.Spec.Linux.UIDMappings = []specs.LinuxIDMapping{{HostID: 5, Size: 0}}
		},
		"tty": func(c *engine.Config) {
			c.Spec.Process.Terminal = true
			dropMounts("/dev/pts")(c.Spec)
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := b.config(t, newSpec("/bin/true"))
			change(c)
			before := fds()
			ct, err := b.Create(testContext(t), c)
			if err == nil {
				remove(t, ct)
				t.Fatal("created")
			}
			t.Log(err)
			if after := fds(); after != before {
				t.Errorf("descriptors: %d before, %d after", before, after)
			}
			if left, _ := os.ReadDir(c.Dir); len(left) > 0 {
				t.Errorf("files: %v", left)
			}
			if kids := children(); kids != childrenBefore {
				t.Errorf("children: %q before, %q after", childrenBefore, kids)
			}
		})
	}
}

// lateCgroup gives c a cgroup that finish is to make.
func lateCgroup(c *engine.Config, finish func() error) {
	c.Cgroup = &engine.Cgroup{V1: map[string]string{"pids": "/no/such/cgroup"}}
	c.FinishCgroup = func(context.Context) error { return finish() }
}

func bindFrom(s *specs.Spec, source string) {
	s.Mounts = append(s.Mounts, specs.Mount{Destination: "/vol", Type: "bind", Source: source, Options: []string{"bind"}})
}

func TestCancel(t *testing.T) {
	b := newBed(t)
	spec := newSpec("/bin/true")
	spec.Hooks = &specs.Hooks{CreateContainer: []specs.Hook{{Path: "/bin/busybox", Args: []string{"sleep", "60"}}}}
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	ct, err := b.Create(ctx, b.config(t, spec))
	if err == nil {
		remove(t, ct)
		t.Fatal("created")
	}
	if ctx.Err() == nil || !strings.Contains(err.Error(), ctx.Err().Error()) {
		t.Error(err)
	}
	ct, err = b.Create(testContext(t), b.config(t, newSpec("/bin/sleep", "60")))
	if err != nil {
		t.Fatal(err)
	}
	defer remove(t, ct)
	if err := ct.Start(ctx); err == nil {
		t.Error("started after the context's end")
	}
	if !ct.(*container).init.ended() {
		t.Error("the process lives on after a failed start")
	}
}

// TestProcByStub takes the way of kernels before 6.17.
func TestProcByStub(t *testing.T) {
	b := newBed(t)
	b.stubProc.Store(true)
	for _, userns := range []bool{false, true} {
		spec := newSpec()
		if userns {
			withUserNS(spec)
		}
		has(t, b.sh(t, spec, "readlink /proc/self; cut -d' ' -f1 /proc/1/stat; echo $$"), "1")
	}
}

func TestTmpfs(t *testing.T) {
	b := newBed(t)
	spec := newSpec()
	spec.Mounts = append(spec.Mounts,
		specs.Mount{Destination: "/bin", Type: "tmpfs", Source: "tmpfs", Options: []string{"ro", "tmpcopyup", "size=16m", "mode=755"}},
		specs.Mount{Destination: "/bin/below", Type: "tmpfs", Source: "tmpfs", Options: []string{"ro", "nosuid", "noexec", "uid=7", "mode=700"}})
	has(t, b.sh(t, spec, "readlink /bin/sh; touch /bin/x 2>/dev/null || echo ro; stat -c '%u %a' /bin/below; stat -c %a /bin/busybox"),
		"busybox", "ro", "7 700", "755")
}

func TestCgroup(t *testing.T) {
	b := newBed(t)
	for _, cgns := range []bool{true, false} {
		t.Run(fmt.Sprint("namespace ", cgns), func(t *testing.T) {
			cg := testCgroup(t, "ct")
			dir, want := "/sys/fs/cgroup/pids", []string{"freezer", "pids", "1", "ro"}
			if len(cg.V1) == 0 {
				dir, want = "/sys/fs/cgroup", []string{"cgroup.procs", "ro"}
			}
			if len(cg.V1) == 0 && cgns {
				want = append(want, "0::/", "cgroup.events", "1") // files that a root has not got, and this shell alone
			}
			spec := newSpec("/bin/sh", "-c", fmt.Sprintf("cat /proc/self/cgroup; ls /sys/fs/cgroup; cat %s/cgroup.procs; mkdir %[1]s/x 2>/dev/null || echo ro", dir))
			if !cgns {
				spec.Linux.Namespaces = spec.Linux.Namespaces[:5]
			}
			c := b.config(t, spec)
			c.Cgroup = cg
			out, _ := b.output(t, c)
			lines := strings.Split(out, "\n")
			has(t, lines, want...)
			own := cgns && len(cg.V1) == 0
			for _, l := range lines {
				own = own || cgns && strings.HasSuffix(l, ":pids:/") || !cgns && strings.HasSuffix(l, "/ct")
			}
			if !own {
				t.Errorf("cgroups: %s", out)
			}
		})
	}
}

// TestKillWithoutUnified takes the freezer's way.
func TestKillWithoutUnified(t *testing.T) {
	b := newBed(t)
	cg := testCgroup(t, "kill")
	if cg.V1["freezer"] == "" {
		t.Skip("no freezer hierarchy")
	}
	cg.Unified = ""
	spec := newSpec("/bin/sh", "-c", "for i in 1 2 3 4 5; do sleep 60 & done; echo up; wait")
	spec.Linux.Namespaces = spec.Linux.Namespaces[1:] // the host's pid namespace: no init takes the others along
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c := b.config(t, spec)
	c.Cgroup, c.Stdout = cg, w
	ct := b.create(t, c)
	if err := ct.Start(testContext(t)); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if _, err := io.ReadFull(r, make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	if err := ct.Kill(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(r); err != nil { // until the last of them has gone
		t.Fatal(err)
	}
	if err := ct.Start(testContext(t)); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("second start: %v", err)
	}
}

// TestKillForks kills what forks all the time: what is missed in one round is found in the next.
func TestKillForks(t *testing.T) {
	b := newBed(t)
	cg := testCgroup(t, "forks")
	if cg.V1["freezer"] == "" {
		t.Skip("no freezer hierarchy")
	}
	cg.Unified = ""
	spec := newSpec("/bin/sh", "-c", "f() { while :; do sleep 0.01 & wait; done; }; for i in 1 2 3 4 5 6 7 8; do f & done; echo up; wait")
	spec.Linux.Namespaces = spec.Linux.Namespaces[1:] // the host's pid namespace: no init takes the others along
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c := b.config(t, spec)
	c.Cgroup, c.Stdout = cg, w
	ct := b.create(t, c)
	if err := ct.Start(testContext(t)); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if _, err := io.ReadFull(r, make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	if err := ct.Kill(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(r); err != nil { // until the last of them has gone
		t.Fatal(err)
	}
}
