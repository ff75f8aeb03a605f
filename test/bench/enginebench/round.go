package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/rootfs"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

// cost is what one step took.
type cost struct{ wall, cpu time.Duration }

// sample is one container's life.
type sample struct{ start, exec, remove cost }

const lifetime = time.Minute // no container of a healthy engine needs longer

// run takes one container from nothing to nothing.
func (c *course) run(ctx context.Context, x contestant) (s sample, err error) {
	ctx, cancel := context.WithTimeout(ctx, lifetime)
	defer cancel()
	c.serial++
	id := fmt.Sprintf("b%d", c.serial)
	dir := filepath.Join(c.base, id)
	for _, d := range []string{"upper", "work", "engine"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return s, err
		}
	}
	defer os.RemoveAll(dir)
	io, err := newStdio()
	if err != nil {
		return s, err
	}
	defer io.close()
	spec := c.spec(c.parent + "/" + id)
	cfg := &engine.Config{
		ID: id, Spec: spec, Dir: filepath.Join(dir, "engine"),
		Rootfs: rootfs.Rootfs{Lower: []string{c.layer}, Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work")},
		Stdin:  io.childIn, Stdout: io.childOut, Stderr: io.childOut,
	}

	begin := c.now()
	if x.native {
		cfg.Cgroup, cfg.FinishCgroup, err = c.cgroups.Begin(ctx, spec.Linux.CgroupsPath, spec.Linux.Resources)
		if err != nil {
			return s, err
		}
		cfg.Seccomp = c.filter
	}
	box, err := x.engine.Create(ctx, cfg)
	if err != nil {
		return s, err
	}
	if err := box.Start(ctx); err != nil {
		return s, err
	}
	if err := io.firstByte(); err != nil {
		return s, err
	}
	init := cpuOf(box.Process().Pid())
	s.start = c.since(begin, init)

	if s.exec, err = c.execTrue(ctx, box, spec.Process, cfg.Seccomp); err != nil {
		return s, err
	}

	init = cpuOf(box.Process().Pid())
	begin = c.now()
	if err := box.Kill(ctx); err != nil {
		return s, err
	}
	if _, err := box.Process().Child().Wait(ctx); err != nil {
		return s, err
	}
	if err := box.Delete(ctx); err != nil {
		return s, err
	}
	if x.native {
		if err := c.cgroups.Delete(ctx, spec.Linux.CgroupsPath); err != nil {
			return s, err
		}
	}
	s.remove = c.since(begin, -init) // reaping counted its whole life again
	return s, nil
}

func (c *course) execTrue(ctx context.Context, box engine.Container, like *specs.Process, filter []byte) (cost, error) {
	p := *like
	p.Args = []string{"/bin/true"}
	begin := c.now()
	x, err := box.Exec(ctx, &engine.ExecConfig{Process: &p, Seccomp: filter})
	if err != nil {
		return cost{}, err
	}
	st, err := x.Child().Wait(ctx)
	if err == nil && st.Code() != 0 {
		err = fmt.Errorf("exec: exit code %d", st.Code())
	}
	return c.since(begin, 0), err
}

// moment is a reading of both clocks.
type moment struct {
	wall time.Time
	cpu  time.Duration
}

func (c *course) now() moment {
	cpu := used(unix.RUSAGE_SELF) + used(unix.RUSAGE_CHILDREN)
	for _, pid := range c.helpers {
		cpu += cpuOf(pid)
	}
	return moment{time.Now(), cpu}
}

// since is the cost from m until now; more is CPU of a process that is not reaped yet.
func (c *course) since(m moment, more time.Duration) cost {
	wall := time.Now()
	return cost{wall.Sub(m.wall), c.now().cpu - m.cpu + more}
}

// children are the processes that this one has started and that still run.
func children() (pids []int) {
	lists, _ := filepath.Glob("/proc/self/task/*/children")
	for _, list := range lists {
		b, _ := os.ReadFile(list)
		for _, f := range strings.Fields(string(b)) {
			if pid, err := strconv.Atoi(f); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// used is getrusage(2); RUSAGE_CHILDREN counts what was reaped.
func used(who int) time.Duration {
	var ru unix.Rusage
	if unix.Getrusage(who, &ru) != nil {
		return 0
	}
	return time.Duration(unix.TimevalToNsec(ru.Utime) + unix.TimevalToNsec(ru.Stime))
}

// cpuOf reads a process's CPU clock (clock_getcpuclockid(3)): exact where /proc has 10 ms ticks.
func cpuOf(pid int) time.Duration {
	const sched = 2 // CPUCLOCK_SCHED
	var ts unix.Timespec
	if unix.ClockGettime(int32(^pid<<3|sched), &ts) != nil {
		return 0
	}
	return time.Duration(ts.Nano())
}

// stdio are the pipes of one container, whose program copies its input to its output.
type stdio struct{ in, out, childIn, childOut *os.File }

func newStdio() (*stdio, error) {
	var s stdio
	var err error
	if s.childIn, s.in, err = pipe(); err != nil {
		return nil, err
	}
	if s.out, s.childOut, err = pipe(); err != nil {
		return nil, err
	}
	_, err = s.in.Write([]byte("x")) // waits in the pipe until the program is there
	return &s, err
}

// pipe is os.Pipe for a reader that the kernel wakes itself: Go's poller would add its own time to everyone's.
func pipe() (r, w *os.File, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, err
	}
	return os.NewFile(uintptr(p[0]), "pipe"), os.NewFile(uintptr(p[1]), "pipe"), nil
}

func (s *stdio) firstByte() error {
	fds := []unix.PollFd{{Fd: int32(s.out.Fd()), Events: unix.POLLIN}}
	n, err := 0, error(unix.EINTR)
	for end := time.Now().Add(lifetime); errors.Is(err, unix.EINTR); {
		n, err = unix.Poll(fds, int(max(0, time.Until(end)).Milliseconds()))
	}
	if err == nil && n == 0 {
		err = os.ErrDeadlineExceeded
	}
	if err == nil {
		_, err = s.out.Read(make([]byte, 1))
	}
	if err != nil {
		return fmt.Errorf("first byte: %w", err)
	}
	return nil
}

func (s *stdio) close() {
	for _, f := range []*os.File{s.in, s.out, s.childIn, s.childOut} {
		f.Close()
	}
}
