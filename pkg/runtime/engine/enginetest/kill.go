package enginetest

import (
	"fmt"
	"os"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

var killTests = []test{
	{"kill/signals", nil, signals},
	{"kill/a process tree", nil, killTree},
	{"kill/a forking tree", nil, killForking},
	{"kill/what outlives the first process", []Feature{LatePids}, killOutliving},
}

func signals(t *testing.T, s *suite) {
	b := s.box(t, s.spec(`trap 'echo usr1' USR1; trap 'exit 7' TERM; echo armed; while :; do sleep 0.01; done`)).start().ready("armed")
	for _, x := range []struct {
		sig  unix.Signal
		line string
	}{{unix.SIGUSR1, "usr1"}, {unix.SIGTERM, ""}} {
		if err := b.c.Process().Signal(x.sig); err != nil {
			t.Fatalf("%s: %v", unix.SignalName(x.sig), err)
		}
		if x.line != "" {
			b.ready(x.line)
		}
	}
	equal(t, "exit code", b.code(), 7)

	b = s.live(t, "")
	if err := b.c.Process().Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	equal(t, "exit code after SIGKILL", b.code(), 128+int(unix.SIGKILL))
}

func killTree(t *testing.T, s *suite) {
	b := s.live(t, `setsid sleep 1000 & (setsid sh -c 'trap "" TERM INT HUP; sleep 1000' &) ; sleep 1000 &`)
	dir := cgroupDirs(t, b.cgroup())[0]
	before := pidsIn(dir)
	if len(before) < 4 {
		t.Fatalf("only %v run", before)
	}
	if err := b.c.Kill(b.ctx()); err != nil {
		t.Fatalf("kill: %v", err)
	}
	equal(t, "exit code", b.code(), 128+int(unix.SIGKILL))
	if !eventually(func() bool { return len(pidsIn(dir)) == 0 }) {
		t.Errorf("still there: %v of %v", pidsIn(dir), before)
	}
	if err := b.c.Kill(b.ctx()); err != nil {
		t.Errorf("kill when none is left: %v", err)
	}
}

func killForking(t *testing.T, s *suite) {
	b := s.live(t, `(while :; do sh -c 'sleep 0.3 & sleep 0.2 &' ; done) 2>/dev/null &`, func(c *specs.Spec) {
		c.Linux.Resources.Pids = &specs.LinuxPids{Limit: ptr(int64(60))}
	})
	dir := cgroupDirs(t, b.cgroup())[0]
	if !eventually(func() bool { return len(pidsIn(dir)) > 10 }) {
		t.Fatal("it does not fork")
	}
	if err := b.c.Kill(b.ctx()); err != nil {
		t.Fatalf("kill: %v", err)
	}
	b.code()
	if !eventually(func() bool { return len(pidsIn(dir)) == 0 }) {
		t.Errorf("still there: %v", pidsIn(dir))
	}
}

// killOutliving: in a shared pid namespace the end of the first process ends no other.
func killOutliving(t *testing.T, s *suite) {
	first := s.live(t, "")
	b := s.box(t, s.spec("setsid sleep 1000 & setsid sleep 1000 & exit 3", namespace(specs.PIDNamespace, nsPath(first.pid(), "pid")))).start()
	equal(t, "exit code", b.code(), 3)
	dir := cgroupDirs(t, b.cgroup())[0]
	if n := len(pidsIn(dir)); n != 2 {
		t.Fatalf("%d processes, not 2", n)
	}
	if err := b.c.Kill(b.ctx()); err != nil {
		t.Fatalf("kill: %v", err)
	}
	if !eventually(func() bool { return len(pidsIn(dir)) == 0 }) {
		t.Errorf("still there: %v", pidsIn(dir))
		for _, pid := range pidsIn(dir) {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d", first.pid())); err != nil {
		t.Error("the other container was killed too")
	}
}
