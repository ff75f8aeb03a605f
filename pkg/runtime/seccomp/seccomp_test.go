package seccomp

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// under loads a filter on a thread of its own, runs f there and lets the thread die.
func under(t *testing.T, filter []byte, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		prog := unix.SockFprog{Len: uint16(len(filter) / 8), Filter: (*unix.SockFilter)(unsafe.Pointer(&filter[0]))}
		err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
		if err == nil {
			_, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog)))
			if e != 0 {
				err = e
			}
		}
		if err == nil {
			f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("load the filter: %v", err)
	}
}

func call(nr uintptr, args ...uintptr) unix.Errno {
	var a [3]uintptr
	copy(a[:], args)
	_, _, e := unix.RawSyscall(nr, a[0], a[1], a[2])
	return e
}

func TestRuntimeDefault(t *testing.T) {
	const newerThanAll = 900
	for _, c := range []struct {
		name string
		caps []string
		nr   uintptr
		arg  uintptr
		want unix.Errno
	}{
		{"getpid", nil, unix.SYS_GETPID, 0, 0},
		{"keyctl", nil, unix.SYS_KEYCTL, 0, unix.EPERM},
		{"unshare user", nil, unix.SYS_UNSHARE, unix.CLONE_NEWUSER, unix.EPERM},
		{"unshare, bad flag, with CAP_SYS_ADMIN", []string{"CAP_SYS_ADMIN"}, unix.SYS_UNSHARE, 1, unix.EINVAL},
		{"clone3 falls back to clone", nil, unix.SYS_CLONE3, 0, unix.ENOSYS},
		{"newer than the profile", nil, newerThanAll, 0, unix.ENOSYS},
		{"personality, unknown persona", nil, unix.SYS_PERSONALITY, 0x1234, unix.EPERM},
		{"personality, query", nil, unix.SYS_PERSONALITY, 0xffffffff, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := RuntimeDefault(c.caps)
			if err != nil {
				t.Fatal(err)
			}
			f, err := Compile(p)
			if err != nil {
				t.Fatal(err)
			}
			under(t, f, func() {
				if e := call(c.nr, c.arg); e != c.want {
					t.Errorf("errno %d (%v), want %d", e, e, c.want)
				}
			})
		})
	}
}

func TestParse(t *testing.T) {
	for _, c := range []struct {
		name, json string
		nr         uintptr
		arg        uintptr
		want       unix.Errno
		err        error
	}{
		{name: "oci", json: `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["getppid"],"action":"SCMP_ACT_ERRNO","errnoRet":7}]}`, nr: unix.SYS_GETPPID, want: 7},
		{name: "docker", json: `{"defaultAction":"SCMP_ACT_ALLOW","archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]}],"syscalls":[{"name":"getppid","action":"SCMP_ACT_ERRNO"}]}`, nr: unix.SYS_GETPPID, want: unix.EPERM},
		{name: "excluded by capability", json: `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"getppid","action":"SCMP_ACT_ERRNO","excludes":{"caps":["CAP_CHOWN"]}}]}`, nr: unix.SYS_GETPPID},
		{name: "argument", json: `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["umask"],"action":"SCMP_ACT_ERRNO","args":[{"index":0,"value":7,"op":"SCMP_CMP_EQ"}]}]}`, nr: unix.SYS_UMASK, arg: 7, want: unix.EPERM},
		{name: "one argument twice means either", json: `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["umask"],"action":"SCMP_ACT_ERRNO","args":[{"index":0,"value":7,"op":"SCMP_CMP_EQ"},{"index":0,"value":8,"op":"SCMP_CMP_EQ"}]}]}`, nr: unix.SYS_UMASK, arg: 8, want: unix.EPERM},
		{name: "masked", json: `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["umask"],"action":"SCMP_ACT_ERRNO","args":[{"index":0,"value":6,"valueTwo":2,"op":"SCMP_CMP_MASKED_EQ"}]}]}`, nr: unix.SYS_UMASK, arg: 2, want: unix.EPERM},
		{name: "unknown syscall is left out", json: `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["no_such_call","getppid"],"action":"SCMP_ACT_ERRNO"}]}`, nr: unix.SYS_GETPPID, want: unix.EPERM},
		{name: "default errno", json: `{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":5,"syscalls":[{"names":["exit","futex","rt_sigreturn","rt_sigprocmask","sigaltstack","write","madvise","munmap","gettid","tgkill","sched_yield","nanosleep","epoll_pwait","exit_group"],"action":"SCMP_ACT_ALLOW"}]}`, nr: unix.SYS_GETPPID, want: 5},
		{name: "no json", json: `{`, err: errdefs.ErrInvalidArgument},
		{name: "null rule", json: `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[null]}`, err: errdefs.ErrInvalidArgument},
		{name: "unknown action", json: `{"defaultAction":"SCMP_ACT_HUG"}`, err: errdefs.ErrInvalidArgument},
		{name: "no default action", json: `{"syscalls":[{"names":["getppid"],"action":"SCMP_ACT_ALLOW"}]}`, err: errdefs.ErrInvalidArgument},
		{name: "unknown architecture", json: `{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_Z80"]}`, err: errdefs.ErrInvalidArgument},
		{name: "unknown flag", json: `{"defaultAction":"SCMP_ACT_ALLOW","flags":["FAST"]}`, err: errdefs.ErrInvalidArgument},
		{name: "unknown operator", json: `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["umask"],"action":"SCMP_ACT_ERRNO","args":[{"index":0,"op":"="}]}]}`, err: errdefs.ErrInvalidArgument},
		{name: "argument 6", json: `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["umask"],"action":"SCMP_ACT_ERRNO","args":[{"index":6,"op":"SCMP_CMP_EQ"}]}]}`, err: errdefs.ErrInvalidArgument},
		{name: "notify", json: `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mount"],"action":"SCMP_ACT_NOTIFY"}]}`, err: errdefs.ErrNotImplemented},
		{name: "listener", json: `{"defaultAction":"SCMP_ACT_ALLOW","listenerPath":"/run/l.sock"}`, err: errdefs.ErrNotImplemented},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := Parse([]byte(c.json), []string{"CAP_CHOWN"})
			if c.err != nil {
				if !errors.Is(err, c.err) {
					t.Fatalf("error %v, want %v", err, c.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			f, err := Compile(p)
			if err != nil {
				t.Fatal(err)
			}
			under(t, f, func() {
				if e := call(c.nr, c.arg); e != c.want {
					t.Errorf("errno %d (%v), want %d", e, e, c.want)
				}
			})
		})
	}
}

func TestErrnoOutOfRange(t *testing.T) {
	code := uint(1 << 20)
	_, err := Compile(&specs.LinuxSeccomp{DefaultAction: specs.ActErrno, DefaultErrnoRet: &code})
	if !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("error %v", err)
	}
}

func TestUnconfinedProfile(t *testing.T) {
	p, err := Parse([]byte(`{}`), nil)
	if p != nil || err != nil {
		t.Errorf("an empty profile gave %v, %v", p, err)
	}
	if f, err := Compile(nil); f != nil || err != nil {
		t.Errorf("no profile gave a filter of %d bytes, %v", len(f), err)
	}
}

func TestLocalhost(t *testing.T) {
	dir := t.TempDir()
	write := func(name, body string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, path string
		err        error
	}{
		{"good", write("good.json", `{"defaultAction":"SCMP_ACT_ALLOW"}`), nil},
		{"relative", "good.json", errdefs.ErrInvalidArgument},
		{"missing", filepath.Join(dir, "none"), errdefs.ErrNotFound},
		{"fifo", fifo, errdefs.ErrInvalidArgument},
		{"directory", dir, errdefs.ErrInvalidArgument},
		{"too large", write("large", strings.Repeat(" ", MaxProfile+1)), errdefs.ErrInvalidArgument},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := Localhost(c.path, nil); !errors.Is(err, c.err) {
				t.Errorf("error %v, want %v", err, c.err)
			}
		})
	}
}

func TestCompileOnce(t *testing.T) {
	var wg sync.WaitGroup
	filters := make([][]byte, 16)
	for i := range filters {
		wg.Go(func() {
			p, err := RuntimeDefault([]string{"CAP_CHOWN"})
			if err != nil {
				t.Error(err)
				return
			}
			if filters[i], err = Compile(p); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, f := range filters {
		if len(f) == 0 || &f[0] != &filters[0][0] {
			t.Fatal("the profile was compiled more than once")
		}
	}
}

// TestSharedDefaults: a default profile is made once for each set of capabilities, has the filter of its content, and few are kept.
func TestSharedDefaults(t *testing.T) {
	get := func(caps ...string) *specs.LinuxSeccomp {
		t.Helper()
		p, err := RuntimeDefault(caps)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	p, other := get("CAP_SYS_ADMIN"), get("CAP_SYS_ADMIN", "CAP_SYS_PTRACE")
	if get("CAP_SYS_ADMIN") != p || other == p {
		t.Error("not one profile for each set")
	}
	for _, x := range []*specs.LinuxSeccomp{p, other} {
		first, err := Compile(x)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Compile(x)
		if err != nil || &first[0] != &again[0] {
			t.Errorf("compiled twice (%v)", err)
		}
		if f, err := compile(x); err != nil || !bytes.Equal(f, first) {
			t.Errorf("not the filter of its content (%v)", err)
		}
	}
	for i := range maxFilters + 10 {
		get(fmt.Sprint("CAP_", i))
	}
	if n, m := len(defaults.byCaps), len(defaults.filters); n > maxFilters || m != n {
		t.Errorf("%d profiles and %d filters are kept", n, m)
	}
	own := *p // whoever makes his own of it gets the filter of that
	own.Syscalls = nil
	if f, err := Compile(&own); err != nil || len(f) >= 1000 {
		t.Errorf("%d bytes, %v", len(f), err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(`{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"}]}`))
	f.Add([]byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"name":"umask","action":"SCMP_ACT_ERRNO","includes":{"minKernel":"4.8"},"args":[{"index":0,"value":1,"op":"SCMP_CMP_LT"}]}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := Parse(b, nil)
		if err != nil {
			return
		}
		filter, err := Compile(p)
		if err == nil && p != nil && (len(filter) == 0 || len(filter)%8 != 0) {
			t.Errorf("filter of %d bytes", len(filter))
		}
		again, err2 := Compile(p)
		if (err == nil) != (err2 == nil) || !bytes.Equal(filter, again) {
			t.Error("not deterministic")
		}
	})
}

func BenchmarkCompile(b *testing.B) {
	p, err := RuntimeDefault([]string{"CAP_CHOWN"})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := compile(p); err != nil {
			b.Fatal(err)
		}
	}
}
