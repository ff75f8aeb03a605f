package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/monitor"
)

// ExecResult is what a program run by ExecSync left.
type ExecResult struct {
	Stdout, Stderr []byte
	ExitCode       int32
}

// drainTimeout is how long output is read after the program has ended, when one of its children keeps the pipe open.
const drainTimeout = time.Second

// execRequest makes the monitor's request for a program in a running container, without its stdio.
func (c *Containers) execRequest(id string, cmd []string, tty bool) (*monitor.ExecRequest, error) {
	ctr, err := c.Get(id)
	if err != nil {
		return nil, err
	}
	if ctr.State != Running {
		return nil, fmt.Errorf("container %s is %s, nothing can be run in it: %w", ctr.ID, ctr.State, errdefs.ErrFailedPrecondition)
	}
	if len(cmd) == 0 || cmd[0] == "" {
		return nil, fmt.Errorf("exec without a command: %w", errdefs.ErrInvalidArgument)
	}
	p := *ctr.Process
	p.Args, p.Terminal, p.ConsoleSize, p.OOMScoreAdj = cmd, tty, nil, nil
	if tty && !slices.ContainsFunc(p.Env, func(e string) bool { return strings.HasPrefix(e, "TERM=") }) {
		p.Env = append(slices.Clip(p.Env), "TERM=xterm")
	}
	filter, err := c.filters.get(ctr.Filter)
	if err != nil {
		return nil, err
	}
	h, err := c.cfg.Handlers.Resolve(ctr.Handler)
	return &monitor.ExecRequest{ID: ctr.ID, Process: &p, Seccomp: filter, Own: err == nil && h.OCI == nil}, nil
}

// ExecSync runs a program to its end and returns what it wrote, at most Config.ExecOutputLimit bytes in all. After
// timeout (0: none) its whole process tree is killed and ErrDeadlineExceeded returned; the same when ctx ends.
func (c *Containers) ExecSync(ctx context.Context, id string, cmd []string, timeout time.Duration) (*ExecResult, error) {
	req, err := c.execRequest(id, cmd, false)
	if err != nil {
		return nil, err
	}
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, timeout, fmt.Errorf("command %q timed out after %v: %w", cmd[0], timeout, context.DeadlineExceeded))
		defer cancel()
	}
	budget := &budget{left: c.cfg.ExecOutputLimit}
	var out, errs capture
	if err := errors.Join(out.open(budget), errs.open(budget)); err != nil {
		out.close()
		errs.close()
		return nil, err
	}
	req.Stdout, req.Stderr, req.Brief = out.w, errs.w, true
	x, err := c.cfg.Monitor.Exec(ctx, req)
	out.w.Close() // the child has its own
	errs.w.Close()
	if err != nil {
		out.close()
		errs.close()
		return nil, cause(ctx, err)
	}
	defer x.Close() // ends what is left if we leave early
	select {
	case <-x.Ended(): // as most have by now, and written less than a pipe holds
	default:
		out.start()
		errs.start()
	}
	code, err := x.Wait(ctx)
	if err != nil {
		err = errors.Join(cause(ctx, err), x.Kill())
		out.close()
		errs.close()
		return nil, err
	}
	x.Release()
	deadline := time.Now().Add(drainTimeout) // for both
	out.limit(deadline)
	errs.limit(deadline)
	res := &ExecResult{Stdout: out.finish(), Stderr: errs.finish(), ExitCode: int32(code)}
	return res, nil
}

// cause prefers the reason why ctx ended over the error it led to.
func cause(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// budget is how many bytes several captures may still keep together.
type budget struct {
	mu   sync.Mutex
	left int64
}

func (b *budget) take(n int) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	k := min(int64(n), b.left)
	b.left -= k
	return int(k)
}

// capture reads a pipe to its end and keeps what the budget allows; the rest is read and thrown away, so that the
// writer is not blocked. It does so when it is asked to finish, or by a goroutine from start on.
type capture struct {
	fd     int      // the reading end, non-blocking
	r      *os.File // owns it since start
	w      *os.File // nil: not open
	budget *budget
	buf    []byte
	done   chan struct{}
}

// Write keeps what the budget allows.
func (c *capture) Write(p []byte) (int, error) {
	c.buf = append(c.buf, p[:c.budget.take(len(p))]...)
	return len(p), nil
}

func (c *capture) open(b *budget) error {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return os.NewSyscallError("pipe2", err)
	}
	// Only this end: a program would see that the other is non-blocking, and few expect it.
	if err := unix.SetNonblock(fds[0], true); err != nil {
		unix.Close(fds[0])
		unix.Close(fds[1])
		return os.NewSyscallError("fcntl", err)
	}
	c.fd, c.w, c.budget = fds[0], os.NewFile(uintptr(fds[1]), "output"), b
	return nil
}

// start reads from now on, as the output comes.
func (c *capture) start() {
	if c.r != nil {
		return
	}
	c.r, c.done = os.NewFile(uintptr(c.fd), "output"), make(chan struct{})
	go func() {
		defer close(c.done)
		chunk := make([]byte, 4096)
		for {
			n, err := c.r.Read(chunk)
			_, _ = c.Write(chunk[:n])
			if n == len(chunk) && n < 64<<10 {
				chunk = make([]byte, 64<<10) // it has something to say
			}
			if errors.Is(err, os.ErrDeadlineExceeded) { // see limit: this goroutine may come late
				_ = copyReady(c, c.r)
			}
			if err != nil {
				return
			}
		}
	}()
}

// limit ends the reading at the end of the output, at deadline at the latest. Where it has not begun it takes what there
// is, which mostly is all.
func (c *capture) limit(deadline time.Time) {
	if c.r == nil && c.ready() {
		return
	}
	c.start()
	_ = c.r.SetReadDeadline(deadline)
}

// ready takes what there is, and tells whether that was all. Not more than a pipe holds: what comes after has a writer
// that goes on.
func (c *capture) ready() bool {
	var chunk [4096]byte
	for range 64<<10/len(chunk) + 1 {
		switch n, err := unix.Read(c.fd, chunk[:]); {
		case n > 0:
			_, _ = c.Write(chunk[:n])
		case err != unix.EINTR:
			return err != unix.EAGAIN
		}
	}
	return false
}

// finish waits for what limit has said, and returns the output.
func (c *capture) finish() []byte {
	if c.r != nil {
		<-c.done
	}
	c.close()
	return c.buf
}

// close gives up what was opened.
func (c *capture) close() {
	if c.w == nil {
		return
	}
	c.w.Close()
	c.w = nil
	if c.r == nil {
		unix.Close(c.fd)
		return
	}
	c.r.Close()
	<-c.done
}

// Size of a terminal in characters.
type Size struct{ Width, Height uint16 }

// Streams are a client's ends of an exec or attach session; nil means not wanted.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	TTY            bool
	Resize         <-chan Size
}
