package enginetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/rootfs"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

// box is one container of a test with its stdio.
type box struct {
	t   *testing.T
	s   *suite
	cfg *engine.Config
	c   engine.Container
	dir string // holds upper, work and engine

	stdin     *os.File // the writing end
	out, errs *sink
	gone      bool
}

// sink collects what comes out of a pipe.
type sink struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	done chan struct{}
	r, w *os.File // w is the process's end
}

func newSink(t *testing.T) *sink {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	k := &sink{done: make(chan struct{}), r: r, w: w}
	go k.collect(r)
	return k
}

func (k *sink) collect(r io.Reader) {
	defer close(k.done)
	b := make([]byte, 4096)
	for {
		n, err := r.Read(b)
		k.mu.Lock()
		k.buf.Write(b[:n])
		k.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (k *sink) String() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.buf.String()
}

// close ends the sink; what a surviving writer holds open does not matter.
func (k *sink) close() {
	k.w.Close()
	k.r.Close()
	<-k.done
}

// box prepares a container; nothing is made in the kernel but its directories and, for native, its cgroup.
func (s *suite) box(t *testing.T, spec *specs.Spec) *box {
	t.Helper()
	id := fmt.Sprintf("c%d", s.serial.Add(1))
	b := &box{t: t, s: s, dir: filepath.Join(s.base, id), out: newSink(t), errs: newSink(t)}
	for _, d := range []string{"upper", "work", "engine"} {
		if err := os.MkdirAll(filepath.Join(b.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b.cfg = &engine.Config{
		ID: id, Spec: spec, Dir: filepath.Join(b.dir, "engine"),
		Rootfs: rootfs.Rootfs{
			Lower: []string{s.layer}, Upper: filepath.Join(b.dir, "upper"), Work: filepath.Join(b.dir, "work"),
		},
	}
	if s.caps.Cgroup {
		var err error
		if b.cfg.Cgroup, b.cfg.FinishCgroup, err = beginCgroup(b.cgroup(), spec.Linux.Resources); err != nil {
			t.Fatalf("cgroup: %v", err)
		}
	} else {
		spec.Linux.CgroupsPath = b.cgroup()
	}
	t.Cleanup(b.remove)
	if spec.Process.Terminal {
		return b
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	b.stdin = w
	b.cfg.Stdin, b.cfg.Stdout, b.cfg.Stderr = r, b.out.w, b.errs.w
	return b
}

func (b *box) cgroup() string { return testns.CgroupParent() + "/" + b.cfg.ID }

// ctx is a context for one step.
func (b *box) ctx() context.Context { return stepContext(b.t) }

func stepContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	t.Cleanup(cancel)
	return ctx
}

// tryCreate creates the container and gives our copies of its stdio away.
func (b *box) tryCreate(ctx context.Context) error {
	c, err := b.s.engine.Create(ctx, b.cfg)
	for _, f := range []*os.File{b.cfg.Stdin, b.cfg.Stdout, b.cfg.Stderr} {
		if f != nil {
			f.Close()
		}
	}
	if err == nil {
		b.c = c
	} else if c != nil {
		b.t.Errorf("create: a container and an error: %v", err)
	}
	return err
}

func (b *box) create() *box {
	b.t.Helper()
	if err := b.tryCreate(b.ctx()); err != nil {
		b.t.Fatalf("create: %v", err)
	}
	return b
}

func (b *box) start() *box {
	b.t.Helper()
	if b.c == nil {
		b.create()
	}
	if err := b.c.Start(b.ctx()); err != nil {
		b.t.Fatalf("start: %v; stderr: %s", err, b.errs)
	}
	return b
}

// code waits for the end of the first process and of its output.
func (b *box) code() int {
	b.t.Helper()
	st, err := b.c.Process().Child().Wait(b.ctx())
	if err != nil {
		b.t.Fatalf("wait: %v; stdout: %s; stderr: %s", err, b.out, b.errs)
	}
	return st.Code()
}

// ready waits for a line of standard output.
func (b *box) ready(line string) *box {
	b.t.Helper()
	if !eventually(func() bool { return slices.Contains(strings.Split(b.out.String(), "\n"), line) || b.ended() }) || b.ended() {
		b.t.Fatalf("no line %q; ended: %v; stdout: %s; stderr: %s", line, b.ended(), b.out, b.errs)
	}
	return b
}

func (b *box) ended() bool {
	select {
	case <-b.c.Process().Child().Done():
		return true
	default:
		return false
	}
}

// finish closes standard input, for which the script waits, and expects exit code 0.
func (b *box) finish() string {
	b.t.Helper()
	b.stdin.Close()
	if code := b.code(); code != 0 {
		b.t.Fatalf("exit code %d; stdout: %s; stderr: %s", code, b.out, b.errs)
	}
	return b.text()
}

// text is the whole standard output without the last line feed.
func (b *box) text() string {
	select {
	case <-b.out.done:
	case <-b.ctx().Done():
		b.t.Fatalf("standard output stays open; stdout: %s", b.out)
	}
	return strings.TrimSpace(b.out.String())
}

func (b *box) pid() int { return b.c.Process().Pid() }

// remove kills and deletes the container, and checks that it left nothing.
func (b *box) remove() {
	if b.gone {
		return
	}
	b.gone = true
	t := b.t
	if b.c != nil {
		if err := b.c.Kill(b.ctx()); err != nil {
			t.Errorf("kill: %v", err)
		}
		b.code()
		for i := range 2 { // idempotent
			if err := b.c.Delete(b.ctx()); err != nil {
				t.Errorf("delete #%d: %v", i+1, err)
			}
		}
		if err := b.c.Process().Signal(unix.SIGTERM); !errdefs.IsNotFound(err) {
			t.Errorf("signal after the end: %v, not ErrNotFound", err)
		}
	}
	b.leavesNothing()
	if b.stdin != nil {
		b.stdin.Close()
		b.cfg.Stdin.Close()
	}
	b.out.close()
	b.errs.close()
	if b.s.caps.Cgroup {
		for _, d := range cgroupDirs(t, b.cgroup()) {
			if !eventually(func() bool { return rmdir(d) }) {
				t.Errorf("cgroup %s can't be removed: still in use", d)
			}
		}
	}
	if err := os.RemoveAll(b.dir); err != nil {
		t.Errorf("directory of the container: %v", err)
	}
}

func rmdir(dir string) bool {
	// The engine may have made cgroups below it for execs; they are empty by now.
	sub, _ := filepath.Glob(dir + "/*/cgroup.procs")
	for _, s := range sub {
		_ = unix.Rmdir(filepath.Dir(s))
	}
	err := unix.Rmdir(dir)
	return err == nil || errors.Is(err, unix.ENOENT)
}

// leavesNothing checks what an engine promises after Delete and after a failed Create.
func (b *box) leavesNothing() {
	b.t.Helper()
	left, err := os.ReadDir(b.cfg.Dir)
	if err != nil || len(left) > 0 {
		b.t.Errorf("left in the engine's directory: %v %v", left, err)
	}
	for _, m := range mountsOf(b.t, os.Getpid()) {
		if strings.HasPrefix(m.point, b.dir+"/") {
			b.t.Errorf("mount left: %s", m.point)
		}
	}
	for _, d := range cgroupDirs(b.t, b.cgroup()) {
		if !b.s.caps.Cgroup {
			b.t.Errorf("cgroup left: %s", d)
			_ = unix.Rmdir(d)
			continue
		}
		if !eventually(func() bool { return len(pidsIn(d)) == 0 }) {
			b.t.Errorf("processes %v left in %s", pidsIn(d), d)
		}
	}
}

// sh runs script in a container to its end and returns its output; exit code 0 is expected.
func (s *suite) sh(t *testing.T, script string, change ...func(*specs.Spec)) string {
	t.Helper()
	return s.box(t, s.spec(script, change...)).start().finish()
}

// live starts a container that runs script and then stays until its standard input is closed.
func (s *suite) live(t *testing.T, script string, change ...func(*specs.Spec)) *box {
	t.Helper()
	return s.box(t, s.spec(script+"\necho ready; cat >/dev/null", change...)).start().ready("ready")
}
