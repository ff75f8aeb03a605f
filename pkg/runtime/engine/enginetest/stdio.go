package enginetest

import (
	"fmt"
	"io"
	"os"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

var stdioTests = []test{
	{"stdio/pipes", nil, pipes},
	{"stdio/none", nil, noStdio},
	{"stdio/much", nil, muchOutput},
	{"stdio/only fds 0 to 2", []Feature{CloseFds}, onlyThreeFds},
	{"stdio/the program's file", nil, exeFile},
}

// orphans are this process's children with the given text in their command line.
func orphans(t *testing.T, text string) []int {
	t.Helper()
	var pids []int
	for _, pid := range take(t).children {
		if b, _ := os.ReadFile("/proc/" + pid + "/cmdline"); strings.Contains(string(b), text) {
			var n int
			if _, err := fmt.Sscan(pid, &n); err == nil {
				pids = append(pids, n)
			}
		}
	}
	return pids
}

func pipes(t *testing.T, s *suite) {
	b := s.box(t, s.spec("read line; echo out $line; echo err $line >&2; cat")).start()
	if _, err := io.WriteString(b.stdin, "one\ntwo\n"); err != nil {
		t.Fatal(err)
	}
	b.ready("two")
	for fd, f := range map[int]*os.File{0: b.stdin, 1: b.out.r, 2: b.errs.r} {
		var here, there unix.Stat_t
		raw, err := f.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		_ = raw.Control(func(n uintptr) { err = unix.Fstat(int(n), &here) })
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Stat(fmt.Sprintf("/proc/%d/fd/%d", b.pid(), fd), &there); err != nil || here.Ino != there.Ino {
			t.Errorf("fd %d is not our pipe: %d, not %d: %v", fd, there.Ino, here.Ino, err)
		}
	}
	equal(t, "stdout", b.finish(), "out one\ntwo")
	equal(t, "stderr", b.errs.String(), "err one\n")
}

func noStdio(t *testing.T, s *suite) {
	b := s.box(t, s.spec("for i in 0 1 2; do readlink /proc/self/fd/$i; done > /tmp/fds; wc -c >> /tmp/fds"))
	for _, f := range []*os.File{b.cfg.Stdout, b.cfg.Stderr} {
		f.Close()
	}
	in := b.cfg.Stdin
	b.cfg.Stdin, b.cfg.Stdout, b.cfg.Stderr = nil, nil, nil
	b.start()
	b.cfg.Stdin = in
	equal(t, "exit code", b.code(), 0)
	equal(t, "fds", read(t, b.dir+"/upper/tmp/fds"), "/dev/null\n/tmp/fds\n/dev/null\n0")
}

func muchOutput(t *testing.T, s *suite) {
	out := s.sh(t, "seq 1 200000")
	equal(t, "bytes", len(out), 1288894)
	if !strings.HasSuffix(out, "\n199999\n200000") {
		t.Error("the end is missing")
	}
}

// onlyThreeFds: no fd of the host leaks in (CVE-2024-21626).
func onlyThreeFds(t *testing.T, s *suite) {
	leak, err := os.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer leak.Close()
	// Even one that this process itself holds without close-on-exec.
	raw, err := leak.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.Control(func(fd uintptr) { _, err = unix.FcntlInt(fd, unix.F_SETFD, 0) })
	if err != nil {
		t.Fatal(err)
	}
	b := s.box(t, s.spec("", program("cat"))).start()
	if _, err := io.WriteString(b.stdin, "up\n"); err != nil {
		t.Fatal(err)
	}
	b.ready("up")
	equal(t, "fds of the program", fdsOf(t, b.pid()), "0 1 2")
	b.finish()
	out := s.sh(t, "ls /proc/self/fd", func(c *specs.Spec) { c.Process.Args = []string{"ls", "/proc/self/fd"} })
	equal(t, "inside (3 is the directory that ls reads)", out, "0\n1\n2\n3")
}

func fdsOf(t *testing.T, pid int) string {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		t.Fatal(err)
	}
	var fds []string
	for _, e := range entries {
		fds = append(fds, e.Name())
	}
	return strings.Join(fds, " ")
}

// exeFile: neither before nor after start is /proc/<pid>/exe a file of the host that could be written (CVE-2019-5736).
func exeFile(t *testing.T, s *suite) {
	b := s.box(t, s.spec("readlink /proc/1/exe; echo ready; cat >/dev/null")).create()
	exe, err := os.Open(fmt.Sprintf("/proc/%d/exe", b.pid()))
	if err != nil {
		t.Fatal(err)
	}
	defer exe.Close()
	seals, _ := unix.FcntlInt(exe.Fd(), unix.F_GET_SEALS, 0)
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(exe.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	if seals&unix.F_SEAL_WRITE == 0 && st.Flags&unix.ST_RDONLY == 0 {
		link, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", b.pid()))
		t.Errorf("created: exe %s is neither a sealed memfd nor on a read-only mount", link)
	}
	b.start().ready("ready")
	equal(t, "inside", b.finish(), "/bin/busybox\nready")
}
