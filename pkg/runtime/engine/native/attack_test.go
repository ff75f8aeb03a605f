package native

import (
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

// peek is a program that looks through /proc, again and again, for a process under whose root or directory the host's
// file $1 is, or that has a /proc of the host's open, with the device number $2. A container's own is another one.
const peek = `echo ready
while :; do
	for p in /proc/[1-9]*; do
		[ -e $p/root$1 ] && echo "$p: $(cat $p/root$1)"
		[ -e $p/cwd$1 ] && echo "$p cwd: $(cat $p/cwd$1)"
		for f in $p/fd/[3-9]*; do
			[ -e $f/self/root ] && [ "$(stat -L -c %d $f)" = $2 ] && echo "$f: host"
		done
	done
done`

func canary(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "canary")
	if err := os.WriteFile(path, []byte("host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// spy starts a container that runs peek with the right to trace.
func (b *bed) spy(t *testing.T, path string) (engine.Container, *os.File) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(int(b.proc.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	spec := newSpec("/bin/sh", "-c", peek, "peek", path, strconv.FormatUint(st.Dev, 10))
	caps := append([]string{"CAP_SYS_PTRACE"}, defaultCaps...)
	spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Permitted: caps, Effective: caps}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	c := b.config(t, spec)
	c.Stdout, c.Stderr = w, w
	ct := b.create(t, c)
	if err := ct.Start(testContext(t)); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if _, err := io.ReadFull(r, make([]byte, len("ready\n"))); err != nil {
		t.Fatal(err)
	}
	return ct, r
}

// A container that may trace processes must not come to the host's files by a session that is about to join it.
func TestSessionHidesHost(t *testing.T) {
	b := newBed(t)
	path := canary(t)
	ct, out := b.spy(t, path)
	session, score := newSpec("/bin/true").Process, 100
	session.OOMScoreAdj = &score // is written in /proc
	for range 300 {
		p, err := ct.Exec(testContext(t), &engine.ExecConfig{Process: session})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := p.Child().Wait(testContext(t)); err != nil {
			t.Fatal(err)
		}
	}
	if err := ct.Kill(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if got, _ := io.ReadAll(out); strings.Contains(string(got), "host") {
		t.Errorf("the container has read the host's file: %.200s", got)
	}
}

// The same for a container that is made in another one's pid namespace.
func TestContainerHidesHost(t *testing.T) {
	b := newBed(t)
	path := canary(t)
	ct, out := b.spy(t, path)
	for range 100 {
		spec := newSpec("/bin/true")
		for i, ns := range spec.Linux.Namespaces {
			if ns.Type == specs.PIDNamespace {
				spec.Linux.Namespaces[i].Path = "/proc/" + strconv.Itoa(ct.Process().Pid()) + "/ns/pid"
			}
		}
		b.life(t, b.config(t, spec))
	}
	if err := ct.Kill(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if got, _ := io.ReadAll(out); strings.Contains(string(got), "host") {
		t.Errorf("the container has read the host's file: %.200s", got)
	}
}

// What a container finds in place of /dev/null, by descriptor or behind a masked path, must not be the host's inode, or
// not to be changed.
func TestNullIsNotTheHosts(t *testing.T) {
	b := newBed(t)
	for _, userns := range []bool{false, true} {
		spec := newSpec()
		if userns {
			withUserNS(spec)
		}
		var before, after unix.Stat_t
		if err := unix.Stat(os.DevNull, &before); err != nil {
			t.Fatal(err)
		}
		lines := b.sh(t, spec, `for f in /proc/self/fd/0 /proc/keys /proc/timer_list; do touch -d 2001-01-01 $f; done; echo x >/proc/keys
			readlink /proc/self/fd/0; echo y >&0 && cat && cat /proc/keys && echo works`)
		has(t, lines, "/dev/null", "works")
		if err := unix.Stat(os.DevNull, &after); err != nil {
			t.Fatal(err)
		}
		if before.Mtim.Sec > after.Mtim.Sec {
			t.Error("the container has changed the times of the host's /dev/null")
			_ = unix.UtimesNanoAt(unix.AT_FDCWD, os.DevNull, []unix.Timespec{before.Atim, before.Mtim}, 0)
		}
	}
}

// executableMemfd: Linux 6.3 knows executable from other memfds, and can seal that.
func executableMemfd() bool {
	fd, err := unix.MemfdCreate("test", unix.MFD_CLOEXEC|unix.MFD_EXEC)
	if err == nil {
		unix.Close(fd)
	}
	return err == nil
}

// Nobody may make the stub unusable through some process's /proc/PID/exe.
func TestImageKeepsMode(t *testing.T) {
	b := newBed(t)
	seals, err := unix.FcntlInt(b.image.Fd(), unix.F_GET_SEALS, 0)
	if err != nil {
		t.Fatal(err)
	}
	switch {
	case seals&unix.F_SEAL_EXEC != 0:
		if err := unix.Fchmod(int(b.image.Fd()), 0); err == nil {
			t.Error("the stub's mode can be changed")
		}
	case executableMemfd():
		t.Error("the stub's mode is not sealed")
	}
	if _, err := b.image.WriteAt([]byte("x"), 0); err == nil {
		t.Error("the stub can be written to")
	}
}

// Somebody who shares a volume swaps a mount point in it for links that lead out, while containers are made.
func TestMountTargetIsSwapped(t *testing.T) {
	b := newBed(t)
	path := canary(t)
	volume := t.TempDir()
	target := filepath.Join(volume, "target")
	stop := make(chan struct{})
	var swapper sync.WaitGroup
	swapper.Go(func() {
		links := []string{filepath.Dir(path), "../../../../../.." + filepath.Dir(path), "/proc/1/root" + filepath.Dir(path), "/proc/sys", "/dev"}
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			_ = os.MkdirAll(filepath.Join(target, "sub"), 0o755)
			_ = os.RemoveAll(target)
			_ = os.Symlink(links[i%len(links)], target)
			_ = os.Remove(target)
		}
	})
	defer swapper.Wait()
	defer close(stop)
	made := 0
	for range 300 {
		spec := newSpec("/bin/sh", "-c", "cat "+path)
		spec.Mounts = append(spec.Mounts,
			specs.Mount{Destination: "/volume", Type: "bind", Source: volume, Options: []string{"rbind", "rw"}},
			specs.Mount{Destination: "/volume/target", Type: "tmpfs", Source: "tmpfs"},
			specs.Mount{Destination: "/volume/target/sub/file", Type: "bind", Source: "/etc/hostname", Options: []string{"rbind", "ro"}})
		spec.Linux.MaskedPaths = append(spec.Linux.MaskedPaths, "/volume/target/sub")
		spec.Linux.ReadonlyPaths = append(spec.Linux.ReadonlyPaths, "/volume/target")
		c := b.config(t, spec)
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		c.Stdout = w
		ct, err := b.Create(testContext(t), c)
		if err != nil { // what the swapper has put there is refused
			r.Close()
			w.Close()
			continue
		}
		made++
		if err := ct.Start(testContext(t)); err != nil {
			t.Fatal(err)
		}
		if out, _ := drain(t, r, w, ct.Process()); strings.Contains(out, "host") {
			t.Fatal("the container has read the host's file")
		}
		r.Close()
		remove(t, ct)
	}
	if entries, err := os.ReadDir(filepath.Dir(path)); err != nil || len(entries) != 1 {
		t.Errorf("the host's directory has changed: %v %v", entries, err)
	}
	if made == 0 {
		t.Error("not one container was made")
	}
}

// What asks for the impossible is told so, and is not an error of the node's.
func TestTooMuchIsInvalid(t *testing.T) {
	b := newBed(t)
	for name, change := range map[string]func(*specs.Process){
		"arguments":         func(p *specs.Process) { p.Args = append(p.Args, strings.Repeat("x", 3<<20)) },
		"an order":          func(p *specs.Process) { p.Args = append(p.Args, strings.Repeat("x", maxPayload)) },
		"magic link":        func(p *specs.Process) { p.Cwd = "/proc/1/root" },
		"a long directory":  func(p *specs.Process) { p.Cwd = "/" + strings.Repeat("x", 300) },
		"a long executable": func(p *specs.Process) { p.Args = []string{"/" + strings.Repeat("x", 300)} },
	} {
		spec := newSpec("/bin/true")
		change(spec.Process)
		ct, err := b.Create(testContext(t), b.config(t, spec))
		if err == nil {
			err = ct.Start(testContext(t))
			remove(t, ct)
		}
		if !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %.300v", name, err)
		}
	}
}
