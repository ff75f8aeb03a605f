package enginetest

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

var execTests = []test{
	{"exec/exit code and output", nil, execCode},
	{"exec/namespaces and cgroup", nil, execPlace},
	{"exec/user, cwd, env", nil, execIdentity},
	{"exec/capabilities", nil, execCapabilities},
	{"exec/limits", nil, execLimits},
	{"exec/terminal", nil, execTerminal},
	{"exec/missing program", nil, execMissing},
	{"exec/after the end", nil, execAfterEnd},
	{"exec/while it ends", nil, execWhileItEnds},
	{"exec/many at once", nil, execMany},
	{"exec/signal", nil, execSignal},
	{"exec/only fds 0 to 2", []Feature{CloseFds}, execFds},
	{"exec/seccomp", nil, execSeccomp},
	{"exec/in a shared pid namespace", nil, execSharedPids},
	{"exec/without stdio", nil, execNoStdio},
	{"exec/cancelled", nil, execCancelled},
}

// session is one exec with its output.
type session struct {
	p         engine.Process
	out, errs *sink
}

// tryExec runs change's process, a shell with script by default, in b.
func (b *box) tryExec(script string, change ...func(*specs.Process)) (*session, error) {
	b.t.Helper()
	p := &specs.Process{
		Args: []string{"/bin/sh", "-c", script}, Env: []string{"PATH=/usr/bin:/bin"}, Cwd: "/",
		Capabilities: &specs.LinuxCapabilities{Bounding: defaultCaps, Effective: defaultCaps, Permitted: defaultCaps},
	}
	for _, f := range change {
		f(p)
	}
	x := &session{out: newSink(b.t), errs: newSink(b.t)}
	b.t.Cleanup(func() { x.out.close(); x.errs.close() })
	cfg := &engine.ExecConfig{Process: p, Seccomp: b.cfg.Seccomp, Stdout: x.out.w, Stderr: x.errs.w}
	if p.Terminal {
		cfg.Stdout, cfg.Stderr = nil, nil
	}
	var err error
	x.p, err = b.c.Exec(b.ctx(), cfg)
	x.out.w.Close()
	x.errs.w.Close()
	return x, err
}

func (b *box) exec(script string, change ...func(*specs.Process)) *session {
	b.t.Helper()
	x, err := b.tryExec(script, change...)
	if err != nil {
		b.t.Fatalf("exec: %v; stderr: %s", err, x.errs)
	}
	return x
}

func (x *session) code(t *testing.T) int {
	t.Helper()
	st, err := x.p.Child().Wait(stepContext(t))
	if err != nil {
		t.Fatalf("exec: wait: %v; stdout: %s; stderr: %s", err, x.out, x.errs)
	}
	<-x.out.done
	return st.Code()
}

// run executes to the end and returns the output.
func (b *box) run(script string, change ...func(*specs.Process)) string {
	b.t.Helper()
	x := b.exec(script, change...)
	if code := x.code(b.t); code != 0 {
		b.t.Fatalf("exec: exit code %d; stdout: %s; stderr: %s", code, x.out, x.errs)
	}
	return strings.TrimSpace(x.out.String())
}

func execCode(t *testing.T, s *suite) {
	b := s.live(t, "")
	for _, want := range []int{0, 1, 42, 255} {
		x := b.exec(fmt.Sprintf("echo out; echo err >&2; cat; exit %d", want))
		equal(t, "exit code", x.code(t), want)
		equal(t, "stdout", x.out.String(), "out\n")
		<-x.errs.done
		equal(t, "stderr", x.errs.String(), "err\n")
	}
	equal(t, "looked up in PATH", b.run("", func(p *specs.Process) { p.Args = []string{"script", "a"} }), "script a")
}

func execPlace(t *testing.T, s *suite) {
	b := s.live(t, "cat /proc/self/cgroup", func(c *specs.Spec) { c.Hostname = "place" })
	x := b.exec("readlink /proc/self/ns/mnt; hostname; cat /proc/self/cgroup; sleep 1000")
	for _, ns := range []string{"pid", "ipc", "uts", "mnt", "net", "cgroup", "user", "time"} {
		equal(t, ns, nsOf(t, x.p.Pid(), ns), nsOf(t, b.pid(), ns))
	}
	equal(t, "cgroup", read(t, fmt.Sprintf("/proc/%d/cgroup", x.p.Pid())), read(t, fmt.Sprintf("/proc/%d/cgroup", b.pid())))
	equal(t, "parent", status(t, x.p.Pid(), "PPid"), fmt.Sprint(os.Getpid()))
	if !eventually(func() bool { return strings.Contains(x.out.String(), "place\n") }) {
		t.Errorf("inside: %s", x.out)
	}
	if err := b.c.Kill(b.ctx()); err != nil {
		t.Fatal(err)
	}
	equal(t, "exit code after Kill", x.code(t), 128+int(unix.SIGKILL))
}

func execIdentity(t *testing.T, s *suite) {
	b := s.live(t, "")
	got := b.run("id -u; id -g; grep Groups /proc/self/status | tr -s '\\t ' ' '; pwd; echo $FOO; umask", func(p *specs.Process) {
		p.User = specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{7, 8}}
		p.Capabilities = &specs.LinuxCapabilities{}
		p.Cwd = "/data/sub"
		p.Env = append(p.Env, "FOO=bar baz")
	})
	equal(t, "inside", got, "1000\n1001\nGroups: 7 8 \n/data/sub\nbar baz\n0022")
}

func execCapabilities(t *testing.T, s *suite) {
	b := s.live(t, "", addCaps("CAP_SYS_ADMIN", "CAP_NET_ADMIN"))
	two := []string{"CAP_CHOWN", "CAP_KILL"}
	out := b.run("cat /proc/self/status", func(p *specs.Process) {
		p.Capabilities = &specs.LinuxCapabilities{Bounding: two, Effective: two, Permitted: two}
		p.NoNewPrivileges = true
	})
	for field, want := range map[string]string{
		"CapInh": mask(t), "CapPrm": mask(t, two...), "CapEff": mask(t, two...), "CapBnd": mask(t, two...), "CapAmb": mask(t), "NoNewPrivs": "1",
	} {
		equal(t, field, statusField(out, field), want)
	}
}

func execLimits(t *testing.T, s *suite) {
	b := s.live(t, "", func(c *specs.Spec) { c.Process.OOMScoreAdj = ptr(200) })
	x := b.exec("ulimit -Ss; sleep 1000", func(p *specs.Process) {
		// Not RLIMIT_NOFILE: Go's runtime raises its soft limit, and runc 1.1 forgets to take that back.
		p.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_STACK", Soft: 1 << 20, Hard: 2 << 20}}
		p.OOMScoreAdj = ptr(300)
	})
	if !eventually(func() bool { return x.out.String() == "1024\n" }) {
		t.Errorf("inside: %q", x.out)
	}
	equal(t, "oom_score_adj", read(t, fmt.Sprintf("/proc/%d/oom_score_adj", x.p.Pid())), "300")
	if err := x.p.Signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	x.code(t)
}

func execTerminal(t *testing.T, s *suite) {
	b := s.live(t, "")
	wait := ""
	if s.lacks(t, ExecSize) {
		wait = "until stty size 2>/dev/null | grep -q 70; do sleep 0.01; done;"
	}
	x, err := b.tryExec(wait+"[ -t 0 ] && [ -t 1 ] && tty; stty size; read x; echo got $x; exit 6", func(p *specs.Process) {
		p.Terminal = true
		p.ConsoleSize = &specs.Box{Height: 20, Width: 70}
	})
	if err != nil {
		t.Fatal(err)
	}
	tty := b.attach(x.p)
	b.line("20 70")
	contains(t, "tty", b.lines(), "/dev/pts/")
	if _, err := tty.WriteString("hello\n"); err != nil {
		t.Fatal(err)
	}
	b.line("got hello")
	equal(t, "exit code", x.code(t), 6)
}

func execMissing(t *testing.T, s *suite) {
	b := s.live(t, "")
	for _, x := range []struct {
		name string
		kind func(error) bool
	}{{"nosuch", errdefs.IsNotFound}, {"/bin/nosuch", errdefs.IsNotFound}, {"/bin/notexec", errdefs.IsPermissionDenied}} {
		_, err := b.tryExec("", func(p *specs.Process) { p.Args = []string{x.name} })
		if !x.kind(err) {
			t.Errorf("%s: %v", x.name, err)
		}
	}
	if b.ended() {
		t.Error("a failed exec ended the container")
	}
	equal(t, "the next exec", b.run("echo fine"), "fine")
}

func execAfterEnd(t *testing.T, s *suite) {
	b := s.live(t, "")
	b.finish()
	if _, err := b.tryExec("true"); !errdefs.IsFailedPrecondition(err) && !errdefs.IsNotFound(err) {
		t.Errorf("%v; want ErrFailedPrecondition or ErrNotFound", err)
	}
}

// execWhileItEnds: whichever step of an exec meets the container's end, that is what the error says.
func execWhileItEnds(t *testing.T, s *suite) {
	for round := range 8 {
		b := s.live(t, "")
		var all sync.WaitGroup
		under := make(chan struct{})
		for i := range 3 {
			all.Go(func() {
				for n := 0; ; n++ {
					x, err := b.tryExec("true")
					if err != nil {
						if !errdefs.IsFailedPrecondition(err) {
							t.Errorf("%v; want ErrFailedPrecondition", err)
						}
						return
					}
					if _, err := x.p.Child().Wait(b.ctx()); err != nil {
						t.Error(err)
						return
					}
					if i == 0 && n == 0 {
						close(under)
					}
				}
			})
		}
		<-under
		kill := b.c.Kill
		if round%2 == 0 { // by itself
			kill = func(context.Context) error { return b.c.Process().Signal(unix.SIGKILL) }
		}
		if err := kill(b.ctx()); err != nil {
			t.Error(err)
		}
		all.Wait()
		b.remove()
	}
}

func execMany(t *testing.T, s *suite) {
	b := s.live(t, "")
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			x, err := b.tryExec(fmt.Sprintf("echo %d; exit %d", i, i))
			if err != nil {
				t.Errorf("exec: %v", err)
				return
			}
			st, err := x.p.Child().Wait(b.ctx())
			if err != nil || st.Code() != i {
				t.Errorf("exit code %d, want %d: %v", st.Code(), i, err)
			}
			<-x.out.done
			equal(t, "output", x.out.String(), fmt.Sprintf("%d\n", i))
		})
	}
	all.Wait()
}

func execSignal(t *testing.T, s *suite) {
	b := s.live(t, "")
	x := b.exec("trap 'exit 4' TERM; echo armed; while :; do sleep 0.01; done")
	if !eventually(func() bool { return x.out.String() == "armed\n" }) {
		t.Fatalf("output %q", x.out)
	}
	if err := x.p.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	equal(t, "exit code", x.code(t), 4)
	if err := x.p.Signal(unix.SIGTERM); !errdefs.IsNotFound(err) {
		t.Errorf("signal after the end: %v", err)
	}
	if b.ended() {
		t.Error("the container ended with it")
	}
}

func execFds(t *testing.T, s *suite) {
	b := s.live(t, "")
	equal(t, "inside", b.run("", func(p *specs.Process) { p.Args = []string{"ls", "/proc/self/fd"} }), "0\n1\n2\n3")
	out := b.run("ls -l /proc/self/fd | grep -c " + s.base + "; readlink /proc/self/exe; true")
	equal(t, "inside", out, "0\n/bin/busybox")
}

func execSeccomp(t *testing.T, s *suite) {
	b := s.filtered(t)
	equal(t, "inside", b.run(trySethostname), "Numerical argument out of domain\nSeccomp:\t2")
}

func execSharedPids(t *testing.T, s *suite) {
	first := s.live(t, "")
	b := s.live(t, "", namespace(specs.PIDNamespace, nsPath(first.pid(), "pid")))
	x := b.exec("exit 17")
	equal(t, "exit code", x.code(t), 17)
}

func execNoStdio(t *testing.T, s *suite) {
	b := s.live(t, "")
	p, err := b.c.Exec(b.ctx(), &engine.ExecConfig{Process: &specs.Process{
		Args: []string{"/bin/sh", "-c", "readlink /proc/$$/fd/2 > /tmp/fds; exit 12"}, Env: []string{"PATH=/bin"}, Cwd: "/",
	}})
	if err != nil {
		t.Fatal(err)
	}
	st, err := p.Child().Wait(b.ctx())
	if err != nil || st.Code() != 12 {
		t.Errorf("exit code %d %v", st.Code(), err)
	}
	equal(t, "stderr", read(t, b.dir+"/upper/tmp/fds"), "/dev/null")
}

// execCancelled: either there is a process or nothing is left.
func execCancelled(t *testing.T, s *suite) {
	b := s.live(t, "")
	dir := cgroupDirs(t, b.cgroup())[0]
	before := len(pidsIn(dir))
	for _, after := range []time.Duration{0, 200 * time.Microsecond, time.Millisecond, 3 * time.Millisecond, 8 * time.Millisecond} {
		ctx, cancel := context.WithTimeout(context.Background(), after)
		p, err := b.c.Exec(ctx, &engine.ExecConfig{Process: &specs.Process{Args: []string{"/bin/sleep", "1000"}, Cwd: "/"}})
		cancel()
		if err != nil {
			continue
		}
		sent := p.Signal(unix.SIGKILL)
		st, err := p.Child().Wait(b.ctx())
		if err != nil || sent != nil {
			t.Errorf("signal: %v; exit code %d %v", sent, st.Code(), err)
		}
	}
	if !eventually(func() bool { return len(pidsIn(dir)) == before }) {
		t.Errorf("left: %v", pidsIn(dir))
	}
	equal(t, "the next exec", b.run("echo fine"), "fine")
}
