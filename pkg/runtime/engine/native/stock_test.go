package native

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/reaper"
)

// stocked is config for a container whose kind there can be a whole kit for.
func (b *bed) stocked(t *testing.T, spec *specs.Spec) *engine.Config {
	c := b.config(t, spec)
	c.Cgroup = testCgroup(t, fmt.Sprint("ct", time.Now().UnixNano()))
	if len(c.Cgroup.V1) > 0 {
		c.Cgroup.Unified = ""
	}
	return c
}

// await waits until a kit is there, or gone.
func (b *bed) await(t *testing.T, there bool) (k *kit) {
	t.Helper()
	for end := time.Now().Add(testns.Patience(10 * time.Second)); time.Now().Before(end); runtime.Gosched() {
		b.stock.mu.Lock()
		k = nil
		for _, k = range b.stock.kits {
		}
		b.stock.mu.Unlock()
		if (k != nil) == there {
			return k
		}
	}
	t.Fatalf("a kit: %v, want %v", !there, there)
	return nil
}

// looks prints what a container might have otherwise than one that was made all at once.
const looks = `cut -d" " -f4- /proc/self/mountinfo | sort -u; ls -lR /dev; cat /proc/self/limits /proc/self/oom_score_adj /proc/self/timerslack_ns 2>/dev/null
grep -v -i "pid\|ctxt\|Vm\|Rss\|tgid\|Sigq" /proc/self/status; cat /proc/self/cgroup; pwd; hostname; ls -l /proc/self/fd; date; cat /proc/keys | wc -c
ls /proc/acpi /proc/bus /sys/firmware; head -c 9 /proc/meminfo; touch /proc/sys/kernel/x /dev/x; ls -l /proc/self/ns; cat /proc/self/attr/current; umask; id`

var changing = regexp.MustCompile(`(?m)\[\d+\]|\d+:\d+(:\d+)?| \d+ .*(workdir|upperdir)=\S+|ct\d+|(master|shared|peer)\S*|^(Sun|Mon|Tue|Wed|Thu|Fri|Sat) .*$|/proc/\d+|\w\w\w +\d+ +`)

// A container that was made of a kit is as any other.
func TestKitIsNoDifference(t *testing.T) {
	adj, quiet := 500, []string{"/proc/keys", "/proc/acpi", "/proc/kcore", "/proc/nosuch", "/sys/firmware", "/proc/../proc/timer_list"}
	for name, change := range map[string]func(*specs.Spec){
		"plain": func(*specs.Spec) {},
		"masked": func(s *specs.Spec) {
			s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = quiet, []string{"/proc/sys", "/proc/bus", "/proc/nosuch"}
		},
		"over proc": func(s *specs.Spec) {
			s.Linux.MaskedPaths = append(quiet, "/proc/meminfo")
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/proc/meminfo", Type: "bind", Source: "/etc/passwd", Options: []string{"bind"}})
		},
		"devices": func(s *specs.Spec) {
			mode := os.FileMode(0o600)
			s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/null", Type: "c", Major: 1, Minor: 3, FileMode: &mode},
				{Path: "/dev/dir/zero", Type: "c", Major: 1, Minor: 5}}
		},
		"over devices": func(s *specs.Spec) {
			for dest, source := range map[string]string{"/dev/random": "/dev/urandom", "/dev/core": "/etc/passwd", "/dev/fd": "/etc"} {
				s.Mounts = append(s.Mounts, specs.Mount{Destination: dest, Type: "bind", Source: source, Options: []string{"bind"}})
			}
		},
		"over dev": func(s *specs.Spec) { // where the image has a link to it
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/bin/dev", Type: "tmpfs", Source: "over"})
		},
		"limits": func(s *specs.Spec) {
			s.Process.OOMScoreAdj, s.Process.Cwd = &adj, "/tmp"
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 77, Hard: 88}}
		},
		"no hostname": func(s *specs.Spec) { s.Hostname = "" },
		"few mounts":  dropMounts("/dev/pts", "/dev/shm", "/sys"),
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			if err := os.Symlink("/dev", filepath.Join(b.layer, "bin/dev")); err != nil {
				t.Fatal(err)
			}
			see := func() string {
				spec := newSpec("/bin/sh", "-c", looks)
				change(spec)
				out, _ := b.output(t, b.stocked(t, spec))
				return changing.ReplaceAllString(out, "")
			}
			cold := see()
			k := b.await(t, true)
			if warm := see(); warm != cold {
				was, is := strings.Split(cold, "\n"), strings.Split(warm, "\n")
				for i := range max(len(was), len(is)) {
					if i >= len(was) || i >= len(is) || was[i] != is[i] {
						t.Fatalf("line %d of %d, %d:\n%q\n%q", i, len(was), len(is), was[min(i, len(was)-1)], is[min(i, len(is)-1)])
					}
				}
			}
			if again := b.await(t, true); again == k {
				t.Error("the kit was not used")
			}
		})
	}
}

// No link of the image's leads to a masked path in proc, to be mounted over, and no remount takes a mask away.
func TestKitMaskIsProc(t *testing.T) {
	for name, tt := range map[string]struct {
		link     string // the image's
		readOnly []string
		mount    specs.Mount
		refused  func(error) bool
	}{
		"masked": {"/proc/meminfo", nil, specs.Mount{Destination: "/bin/link", Type: "bind", Source: "/etc/passwd",
			Options: []string{"bind"}}, errdefs.IsPermissionDenied},
		"masked in what is read-only": {"/proc/sys/kernel/version", []string{"/proc/sys"}, specs.Mount{Destination: "/bin/link",
			Type: "bind", Source: "/etc/passwd", Options: []string{"bind"}}, errdefs.IsPermissionDenied},
		"remount": {"/proc/meminfo", nil, specs.Mount{Destination: "/proc/meminfo", Type: "none", Source: "none",
			Options: []string{"bind", "remount", "rw"}}, func(err error) bool { return errors.Is(err, unix.EINVAL) }},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBed(t)
			if err := os.Symlink(tt.link, filepath.Join(b.layer, "bin/link")); err != nil {
				t.Fatal(err)
			}
			masked := func(more ...specs.Mount) *specs.Spec {
				s := newSpec("/bin/true")
				s.Linux.MaskedPaths, s.Linux.ReadonlyPaths, s.Mounts = []string{tt.link}, tt.readOnly, append(s.Mounts, more...)
				return s
			}
			for range 2 {
				if ct, err := b.Create(testContext(t), b.stocked(t, masked(tt.mount))); !tt.refused(err) {
					t.Errorf("%v, %v", ct, err)
				}
				b.output(t, b.stocked(t, masked()))
				if k := b.await(t, true); k.stub != nil && len(k.masking) != 1 {
					t.Errorf("masks: %v", k.masking)
				}
			}
		})
	}
}

// What the host mounts after a kit was made is there for the container.
func TestKitIsNotOfYesterday(t *testing.T) {
	b := newBed(t)
	dir := t.TempDir()
	with := func() *specs.Spec {
		s := newSpec()
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/host", Type: "bind", Source: dir, Options: []string{"rbind"}})
		return s
	}
	spec := with()
	spec.Process.Args = []string{"/bin/true"}
	b.output(t, b.stocked(t, spec))
	b.await(t, true)
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	if err := os.WriteFile(filepath.Join(dir, "new"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	spec = with()
	spec.Process.Args = []string{"/bin/ls", "/host"}
	if out, _ := b.output(t, b.stocked(t, spec)); out != "new\n" {
		t.Errorf("%q", out)
	}
}

// A stub that waits in a kit may be killed at any time, sees nothing of the host, and ends with its socket: with this
// process, whether that dies or executes another program.
func TestKitStub(t *testing.T) {
	b := newBed(t)
	waits := func() *stub {
		b.output(t, b.stocked(t, newSpec("/bin/true")))
		k := b.await(t, true)
		if k.stub == nil {
			t.Skip("no kits with processes: cgroup2 only")
		}
		return k.stub
	}
	s := waits()
	pid := s.child.Pid()
	if entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/root", pid)); err != nil || len(entries) > 0 {
		t.Errorf("root: %v %v", entries, err)
	}
	if fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid)); err != nil || len(fds) != 4 {
		t.Errorf("descriptors: %v %v", fds, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d/mem", pid), &st); err != nil || st.Uid != 0 {
		t.Errorf("dumpable: owner %d %v", st.Uid, err)
	}
	if flags, err := unix.FcntlInt(uintptr(s.fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("the socket outlives an execve: %x %v", flags, err)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-s.child.Done()
	if next := waits(); next == s {
		t.Error("a dead stub is kept")
	}
	s = waits()
	if err := unix.Shutdown(s.fd, unix.SHUT_RDWR); err != nil {
		t.Fatal(err)
	}
	<-s.child.Done()
	s = waits()
	b.Release()
	<-s.child.Done()
}

// Nothing is kept for long.
func TestKitsEnd(t *testing.T) {
	b := newBed(t)
	spec := newSpec("/bin/true")
	b.output(t, b.stocked(t, spec))
	k := b.await(t, true)
	b.stock.mu.Lock()
	b.stock.life = 0
	b.stock.mu.Unlock()
	b.threads.handOver() // instead of the time
	b.await(t, false)
	if k.stub != nil {
		<-k.stub.child.Done()
	}
	b.stock.mu.Lock()
	b.stock.life = shelfLife
	b.stock.mu.Unlock()
	b.output(t, b.stocked(t, spec))
	b.await(t, true)
	withUserNS(spec) // its thread is not used again, and was the last one
	b.output(t, b.config(t, spec))
	b.await(t, false)
}

func TestRecipe(t *testing.T) {
	of := func(change func(*specs.Spec)) *recipe {
		s := newSpec("/bin/true")
		change(s)
		ns, err := openNamespaces(s.Linux.Namespaces)
		if err != nil {
			t.Fatal(err)
		}
		return newRecipe(&builder{spec: s, ns: ns, config: &engine.Config{Cgroup: &engine.Cgroup{V1: map[string]string{"pids": "/x"}}}})
	}
	same := of(func(*specs.Spec) {})
	if same == nil || !same.stub || !same.devices || len(same.mounts) < 5 {
		t.Fatalf("%+v", same)
	}
	mount := func(m specs.Mount) func(*specs.Spec) {
		return func(s *specs.Spec) { s.Mounts = append(s.Mounts, m) }
	}
	if r := of(mount(specs.Mount{Destination: "/x", Type: "bind", Source: "/tmp", Options: []string{"bind"}})); r.key != same.key {
		t.Error("a bind mount makes another kind")
	}
	for name, change := range map[string]func(*specs.Spec){
		"label":      func(s *specs.Spec) { s.Linux.MountLabel = "x" },
		"masked":     func(s *specs.Spec) { s.Linux.MaskedPaths = []string{"/proc/keys"} },
		"read-only":  func(s *specs.Spec) { s.Linux.ReadonlyPaths = []string{"/proc/keys"} },
		"options":    func(s *specs.Spec) { s.Mounts[1].Options = []string{"mode=700"} },
		"devices":    func(s *specs.Spec) { s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev//tty"}} },
		"namespaces": func(s *specs.Spec) { s.Linux.Namespaces = s.Linux.Namespaces[:4] },
	} {
		if r := of(change); r == nil || r.key == same.key {
			t.Errorf("%s: %+v", name, r)
		}
	}
	for _, dest := range []string{"/dev/null", "/dev//tty", "/dev/fd/3"} {
		if r := of(mount(specs.Mount{Destination: dest, Type: "bind"})); r == nil || r.devices {
			t.Errorf("%s: %+v", dest, r)
		}
	}
	for name, change := range map[string]func(*specs.Spec){
		"twice":   mount(specs.Mount{Destination: "/dev/", Type: "tmpfs"}),
		"hooks":   func(s *specs.Spec) { s.Hooks = &specs.Hooks{Prestart: []specs.Hook{{Path: "/x"}}} }, //nolint:staticcheck
		"user ns": withUserNS,
		"remount": mount(specs.Mount{Destination: "/proc/keys", Type: "none", Options: []string{"remount"}}),
	} {
		if r := of(change); r != nil {
			t.Errorf("%s: %+v", name, r)
		}
	}
	if r := of(func(s *specs.Spec) { s.Hostname = "" }); r == nil || r.stub {
		t.Errorf("no hostname: %+v", r)
	}
}

// A nursery that dies with an order is no reason to wait, even if the fork has the other end of the socket.
func TestNurseryDiesBeforeItsAnswer(t *testing.T) {
	b := newBed(t)
	c, theirs, err := pair()
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	defer unix.Close(theirs)
	s := &stub{conn: c, engine: b.Engine}
	b.nursery.expect(s)
	if err := unix.PidfdSendSignal(b.nursery.stub.pidfd, unix.SIGKILL, nil, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := s.spawned(); !errors.Is(err, errStubDied) {
		t.Error(err)
	}
	has(t, b.sh(t, newSpec(), "echo well"), "well")
}

// What a stub could not prepare is no less true when it is asked a second time.
func TestSaveOfFailed(t *testing.T) {
	c := &container{spec: newSpec("/bin/true"), init: &process{child: reaper.Ended(1, 0), pidfd: -1},
		pending: &pending{stub: &stub{}, failed: unix.EINVAL}}
	for range 2 {
		if _, err := c.Save(); !errors.Is(err, unix.EINVAL) || !strings.Contains(err.Error(), "save") {
			t.Error(err)
		}
	}
}
