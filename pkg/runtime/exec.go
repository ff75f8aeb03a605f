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
	return &monitor.ExecRequest{ID: ctr.ID, Process: &p, Seccomp: filter}, nil
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
	req.Stdout, req.Stderr = out.w, errs.w
	x, err := c.cfg.Monitor.Exec(ctx, req)
	out.w.Close() // the child has its own
	errs.w.Close()
	if err != nil {
		out.close()
		errs.close()
		return nil, cause(ctx, err)
	}
	defer x.Close() // ends what is left if we leave early
	code, err := x.Wait(ctx)
	if err != nil {
		err = errors.Join(cause(ctx, err), x.Kill())
		out.close()
		errs.close()
		return nil, err
	}
	x.Release()
	deadline := time.Now().Add(drainTimeout) // for both
	_, _ = out.r.SetReadDeadline(deadline), errs.r.SetReadDeadline(deadline)
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
// writer is never blocked.
type capture struct {
	r, w   *os.File
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
	var err error
	if c.r, c.w, err = os.Pipe(); err != nil {
		return err
	}
	blocking(c.w)
	c.budget, c.done = b, make(chan struct{})
	go func() {
		defer close(c.done)
		chunk := make([]byte, 4096)
		for {
			n, err := c.r.Read(chunk)
			_, _ = c.Write(chunk[:n])
			if n == len(chunk) && n < 64<<10 {
				chunk = make([]byte, 64<<10) // it has something to say
			}
			if errors.Is(err, os.ErrDeadlineExceeded) { // see finish: this goroutine may come late
				_ = copyReady(c, c.r)
			}
			if err != nil {
				return
			}
		}
	}()
	return nil
}

// blocking makes the end of a pipe that a program gets an ordinary one: os.Pipe's are non-blocking, which the program
// would see, and few expect.
func blocking(f *os.File) { f.Fd() }

// finish waits for the end of output, not longer than r's read deadline.
func (c *capture) finish() []byte {
	<-c.done
	c.r.Close()
	return c.buf
}

func (c *capture) close() {
	if c.r == nil {
		return
	}
	c.w.Close()
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
