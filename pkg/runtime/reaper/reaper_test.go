package reaper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/testns"
)

func TestMain(m *testing.M) {
	if os.Getenv(callerEnv) != "" {
		call()
	}
	testns.Main(m)
}

// theReaper is made by the first test: not in the process around the tests, which waits for them itself.
var theReaper = sync.OnceValue(New)

func sh(t testing.TB, script string) *Child {
	t.Helper()
	c, err := theReaper().Fork(func() (int, error) {
		return syscall.ForkExec("/bin/sh", []string{"sh", "-c", script}, &syscall.ProcAttr{Files: []uintptr{0, 1, 2}})
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestStatus(t *testing.T) {
	for script, want := range map[string]int{"true": 0, "exit 3": 3, "kill -9 $$": 137, "kill -15 $$": 143} {
		s, err := sh(t, script).Wait(t.Context())
		if err != nil || s.Code() != want {
			t.Errorf("%s: %d %v", script, s.Code(), err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	c := sh(t, "exec sleep 1000")
	if _, err := c.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("wait: %v", err)
	}
	_ = unix.Kill(c.Pid(), unix.SIGKILL)
	if _, err := c.Wait(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := c.Wait(ctx); err != nil { // known by now
		t.Errorf("wait: %v", err)
	}
}

// TestParallel forks children that are gone before their pid is known.
func TestParallel(t *testing.T) {
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			c := sh(t, fmt.Sprintf("exit %d", i%256))
			told := make(chan Status, 1)
			c.AfterExit(func(s Status) { told <- s })
			s, err := c.Wait(t.Context())
			if err != nil || s.Code() != i%256 || (<-told).Code() != i%256 {
				t.Errorf("%d: %d %v", i, s.Code(), err)
			}
			c.AfterExit(func(s Status) { told <- s })
			if (<-told).Code() != i%256 {
				t.Error("told late and wrong")
			}
		})
	}
	wg.Wait()
}

// TestAdopt gets the exit of a process that was orphaned to us.
func TestAdopt(t *testing.T) {
	testns.Root(t)
	theReaper()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c := Command{Path: "/bin/sh", Args: []string{"-c", "(sleep 0.1; exit 7) & echo $!"}, Stdout: w}
	if s, err := c.Run(t.Context(), theReaper()); err != nil || s.Code() != 0 {
		t.Fatal(s, err)
	}
	w.Close()
	var pid int
	if _, err := fmt.Fscan(r, &pid); err != nil {
		t.Fatal(err)
	}
	if s, err := theReaper().Adopt(pid).Wait(t.Context()); err != nil || s.Code() != 7 {
		t.Errorf("%d %v", s.Code(), err)
	}
}

func TestUnclaimed(t *testing.T) {
	r := &Reaper{children: map[int]*Child{}, unclaimed: map[int]exit{}}
	status := func(n int) Status { return Status{WaitStatus: unix.WaitStatus(n << 8)} }
	r.settle(5, status(1))
	if c := r.register(5, 1); isDone(c) {
		t.Error("an exit from before the fork was taken for the child's")
	}
	delete(r.children, 5)
	r.settle(6, status(2))
	r.settle(6, status(3)) // the pid came round
	if c := r.Adopt(6); !isDone(c) || c.status.Code() != 3 {
		t.Errorf("%+v", c.status)
	}
	r.settle(7, status(4))
	for i := range maxUnclaimed - 4 {
		r.settle(1000+i, status(0))
	}
	r.Adopt(7)
	r.settle(7, status(5)) // a later process; the stale entry for 7 must not evict it
	for i := range 5 {
		r.settle(10_000+i, status(0))
	}
	if c := r.Adopt(7); !isDone(c) || c.status.Code() != 5 {
		t.Error("a fresh exit was forgotten")
	}
	if len(r.unclaimed) > maxUnclaimed || len(r.order) > maxUnclaimed {
		t.Errorf("%d, %d remembered", len(r.unclaimed), len(r.order))
	}
}

// A child whose exit was dropped, because too many of unknown processes came before its pid was known, is not waited for in
// vain.
func TestExpectOutlivesUnclaimed(t *testing.T) {
	r := theReaper()
	other := sh(t, "exec sleep 1000") // with no child at all it waits for one that is registered
	defer func() {
		_ = unix.Kill(other.Pid(), unix.SIGKILL)
		<-other.Done()
	}()
	forked := r.Expect()
	pid, err := syscall.ForkExec("/bin/true", []string{"true"}, &syscall.ProcAttr{Files: []uintptr{0, 1, 2}})
	if err != nil {
		t.Fatal(err)
	}
	for known := false; !known; runtime.Gosched() {
		r.mu.Lock()
		_, known = r.unclaimed[pid]
		r.mu.Unlock()
	}
	const unknown = 1 << 30 // above any pid
	for i := range maxUnclaimed {
		r.settle(unknown+i, Status{})
	}
	s, err := forked(pid).Wait(t.Context())
	if err != nil || !s.Unknown {
		t.Errorf("%+v, %v", s, err)
	}
	forked = r.Expect()
	for i := range 2 * maxUnclaimed {
		r.settle(unknown+i, Status{})
	}
	pidfd := -1
	pid, err = syscall.ForkExec("/bin/sh", []string{"sh", "-c", "exit 3"},
		&syscall.ProcAttr{Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{PidFD: &pidfd}})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	if s, err := forked(pid).Wait(t.Context()); err != nil || s.Unknown || s.Code() != 3 {
		t.Errorf("one that is there: %+v, %v", s, err)
	}
}

func isDone(c *Child) bool {
	select {
	case <-c.Done():
		return true
	default:
		return false
	}
}

func TestCommand(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c := Command{Path: "sh", Args: []string{"-c", "pwd; echo $A; cat; exit 4"}, Env: []string{"A=b", "PATH=/bin:/usr/bin"}, Dir: "/usr", Stdout: w}
	s, err := c.Run(t.Context(), theReaper())
	w.Close()
	out, _ := io.ReadAll(r)
	if err != nil || s.Code() != 4 || string(out) != "/usr\nb\n" {
		t.Errorf("%d %v %q", s.Code(), err, out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	c = Command{Path: "sleep", Args: []string{"1000"}}
	if s, err := c.Run(ctx, theReaper()); !errors.Is(err, context.DeadlineExceeded) || s.Signal() != unix.SIGKILL {
		t.Errorf("%v %v", s, err)
	}
	c = Command{Path: "/no/such/program"}
	if _, err := c.Run(t.Context(), theReaper()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing program: %v", err)
	}
	c = Command{Path: "/bin/sh", Dir: "/no/such/dir"}
	if _, err := c.Run(t.Context(), theReaper()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing directory: %v", err)
	}
}

// A Command's program does not outlive the process that has called it.
func TestCommandDiesWithItsCaller(t *testing.T) {
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	caller, err := theReaper().Fork(func() (int, error) {
		return syscall.ForkExec("/proc/self/exe", []string{"caller"}, &syscall.ProcAttr{
			Env: append(os.Environ(), callerEnv+"=1"), Files: []uintptr{0, in.Fd(), 2},
		})
	})
	in.Close()
	if err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Fscan(out, &pid); err != nil {
		t.Fatal(err)
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	_ = unix.Kill(caller.Pid(), unix.SIGKILL)
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 20000); n != 1 {
		_ = unix.Kill(pid, unix.SIGKILL)
		t.Errorf("the program lives on: %d %v", n, err)
	}
	if _, err := caller.Wait(t.Context()); err != nil {
		t.Error(err)
	}
}

// callerEnv makes the test binary a process that has called a Command.
const callerEnv = "CRI_REAPER_TEST_CALLER"

func call() {
	_, err := (&Command{Path: "/bin/sh", Args: []string{"-c", "echo $$; exec sleep 1000"}, Stdout: os.Stdout}).Run(context.Background(), New())
	fmt.Fprintln(os.Stderr, "the program has ended:", err)
	os.Exit(1)
}
