package native

import (
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

// peek is a program that looks through /proc, again and again, for a process under whose root or directory the host's
// file $1 is.
const peek = `echo ready
while :; do
	for p in /proc/[1-9]*; do
		[ -e $p/root$1 ] && echo "$p: $(cat $p/root$1)"
		[ -e $p/cwd$1 ] && echo "$p cwd: $(cat $p/cwd$1)"
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
	spec := newSpec("/bin/sh", "-c", peek, "peek", path)
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
	for range 300 {
		p, err := ct.Exec(testContext(t), &engine.ExecConfig{Process: newSpec("/bin/true").Process})
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

// Nobody may make the stub unusable through some process's /proc/PID/exe.
func TestImageKeepsMode(t *testing.T) {
	b := newBed(t)
	if err := unix.Fchmod(int(b.image.Fd()), 0); err == nil {
		t.Error("the stub's mode can be changed")
	}
	if _, err := b.image.WriteAt([]byte("x"), 0); err == nil {
		t.Error("the stub can be written to")
	}
}
