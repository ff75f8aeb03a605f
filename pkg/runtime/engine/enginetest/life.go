package enginetest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

var lifeTests = []test{
	{"life/exit codes", nil, exitCodes},
	{"life/created is not running", nil, createdIsNotRunning},
	{"life/created can be deleted", nil, createdCanBeDeleted},
	{"life/killed before start", nil, killedBeforeStart},
	{"life/args are looked up in PATH", nil, argsInPath},
	{"life/missing program", nil, missingProgram},
	{"life/program without permission", nil, programWithoutPermission},
	{"life/garbage as program", []Feature{ExecveErrors}, garbageProgram},
}

func exitCodes(t *testing.T, s *suite) {
	for _, want := range []int{0, 1, 42, 126, 255} {
		equal(t, "exit code", s.box(t, s.spec(fmt.Sprintf("exit %d", want))).start().code(), want)
	}
}

func createdIsNotRunning(t *testing.T, s *suite) {
	b := s.box(t, s.spec("touch /tmp/ran")).create()
	if state := status(t, b.pid(), "State"); strings.HasPrefix(state, "Z") {
		t.Errorf("created process is %s", state)
	}
	if cmd := read(t, fmt.Sprintf("/proc/%d/cmdline", b.pid())); strings.Contains(cmd, "/tmp/ran") {
		t.Errorf("the created process runs %q", cmd)
	}
	equal(t, "parent", status(t, b.pid(), "PPid"), fmt.Sprint(os.Getpid()))
	ran := filepath.Join(b.dir, "upper/tmp/ran")
	if _, err := os.Stat(ran); err == nil {
		t.Error("the program ran before Start")
	}
	b.start().finish()
	if _, err := os.Stat(ran); err != nil {
		t.Errorf("the program did not run: %v", err)
	}
}

func createdCanBeDeleted(t *testing.T, s *suite) {
	s.box(t, s.spec("true")).create().remove()
}

func killedBeforeStart(t *testing.T, s *suite) {
	b := s.box(t, s.spec("true")).create()
	if err := b.c.Kill(b.ctx()); err != nil {
		t.Fatalf("kill: %v", err)
	}
	equal(t, "exit code", b.code(), 128+int(unix.SIGKILL))
	if err := b.c.Start(b.ctx()); err == nil {
		t.Error("start of a dead container: no error")
	}
}

func argsInPath(t *testing.T, s *suite) {
	for _, x := range []struct {
		args []string
		cwd  string
		want string
	}{
		{[]string{"script", "one", "two words"}, "/", "script one two words"},
		{[]string{"./script", "x"}, "/usr/bin", "script x"},
		{[]string{"/usr/bin/script"}, "/tmp", "script"},
		{[]string{"echo", ""}, "/", ""},
	} {
		got := s.box(t, s.spec("", func(c *specs.Spec) { c.Process.Args, c.Process.Cwd = x.args, x.cwd })).start().finish()
		equal(t, strings.Join(x.args, " "), got, x.want)
	}
}

// launch creates and starts, and returns the first error; the process must be dead after a failed Start.
func (b *box) launch() error {
	b.t.Helper()
	if err := b.tryCreate(b.ctx()); err != nil {
		b.leavesNothing()
		return err
	}
	err := b.c.Start(b.ctx())
	if err != nil && !eventually(b.ended) {
		b.t.Error("the process is alive after a failed start")
	}
	return err
}

func program(args ...string) func(*specs.Spec) {
	return func(c *specs.Spec) { c.Process.Args = args }
}

func missingProgram(t *testing.T, s *suite) {
	for _, name := range []string{"nosuch", "/bin/nosuch", "/nosuch/dir/x"} {
		err := s.box(t, s.spec("", program(name))).launch()
		if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v; want an ErrNotFound that names it", name, err)
		}
	}
}

func programWithoutPermission(t *testing.T, s *suite) {
	for _, name := range []string{"/bin/notexec", "/data"} {
		if err := s.box(t, s.spec("", program(name))).launch(); !errdefs.IsPermissionDenied(err) {
			t.Errorf("%s: %v; want ErrPermissionDenied", name, err)
		}
	}
}

func garbageProgram(t *testing.T, s *suite) {
	if err := s.box(t, s.spec("", program("/bin/garbage"))).launch(); err == nil {
		t.Error("no error")
	}
}

func manyAtOnce(t *testing.T, s *suite, n int) {
	boxes := make([]*box, n)
	for i := range boxes {
		boxes[i] = s.box(t, s.spec(fmt.Sprintf("hostname; read x; exit %d", i+1), func(c *specs.Spec) { c.Hostname = fmt.Sprintf("h%d", i) }))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*deadline)
	defer cancel()
	var all sync.WaitGroup
	for _, b := range boxes {
		all.Go(func() {
			if err := b.tryCreate(ctx); err != nil {
				t.Errorf("create: %v", err)
				return
			}
			if err := b.c.Start(ctx); err != nil {
				t.Errorf("start: %v", err)
			}
		})
	}
	all.Wait()
	for i, b := range boxes {
		if b.c == nil {
			continue
		}
		b.ready(fmt.Sprintf("h%d", i))
		b.stdin.Close()
		equal(t, "exit code", b.code(), i+1)
		equal(t, "output", b.text(), fmt.Sprintf("h%d", i))
	}
}
