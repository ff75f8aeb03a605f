package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

// Start runs the runtime's start.
func (c *container) Start(ctx context.Context) error {
	if c.init.ended() {
		return fmt.Errorf("start %s: the process has ended: %w", c.id, errdefs.ErrFailedPrecondition)
	}
	err := c.engine.run(ctx, invocation{args: []string{"start", c.id}, dir: c.dir, timeout: startTimeout})
	if err == nil {
		return nil
	}
	// A start that was cut short may have let the program go.
	_ = c.init.Signal(unix.SIGKILL)
	if dead := c.init.wait(context.WithoutCancel(ctx)); dead != nil {
		return fmt.Errorf("start %s: %w (and process %d has not ended: %w)", c.id, err, c.init.pid, dead)
	}
	return fmt.Errorf("start %s: %w", c.id, err)
}

// Exec runs the runtime's exec, detached.
func (c *container) Exec(ctx context.Context, x *engine.ExecConfig) (engine.Process, error) {
	p, err := c.exec(ctx, x)
	if err != nil {
		// A runtime whose container ends meanwhile says whatever the step it was at says.
		if ctx.Err() == nil && c.init.endsIn(endGrace(err)) {
			err = fmt.Errorf("the container has ended: %w (%v)", errdefs.ErrFailedPrecondition, err) //nolint:errorlint
		}
		return nil, fmt.Errorf("exec in %s: %w", c.id, err)
	}
	c.watch(p)
	return p, nil
}

// endGrace is how long after a failed exec the container's end may show: none where the runtime has told a reason of
// its own.
func endGrace(err error) time.Duration {
	if errdefs.IsInvalidArgument(err) || errdefs.IsNotFound(err) || errdefs.IsPermissionDenied(err) || errdefs.IsNotImplemented(err) {
		return 0
	}
	return 500 * time.Millisecond
}

// watch closes p's pidfd when it ends. Delete waits for the watchers.
func (c *container) watch(p *process) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.execs[p] = struct{}{}
	c.watchers.Go(func() {
		<-p.child.Done()
		p.close()
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.execs, p)
	})
}

// running are the exec'd processes that have not ended.
func (c *container) running() []*process {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Collect(maps.Keys(c.execs))
}

func (c *container) exec(ctx context.Context, x *engine.ExecConfig) (*process, error) {
	switch {
	case x.Process == nil || len(x.Process.Args) == 0:
		return nil, fmt.Errorf("no process: %w", errdefs.ErrInvalidArgument)
	case x.Process.Terminal && (x.Stdin != nil || x.Stdout != nil || x.Stderr != nil):
		return nil, fmt.Errorf("stdio given together with a terminal: %w", errdefs.ErrInvalidArgument)
	case c.init.ended():
		return nil, fmt.Errorf("the container is not running: %w", errdefs.ErrFailedPrecondition)
	}
	if err := knownCapabilities(x.Process.Capabilities); err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := c.engine.lacking(c.engine.features.process(x.Process)); err != nil {
		return nil, err
	}
	base := filepath.Join(c.dir, fmt.Sprintf("exec-%d", c.engine.serial.Add(1)))
	b, err := json.Marshal(x.Process)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(base, b, 0o600); err != nil {
		return nil, err
	}
	defer os.Remove(base)
	// A runtime killed in the middle leaves a process that nobody knows. It gets a while to end by itself, and then
	// the process can be killed.
	patient, cancel := outlive(ctx, cancelGrace)
	defer cancel()
	p, err := c.spawn(patient, spawn{
		args:    []string{"exec", "--detach", "--pid-file", base + ".pid", "--process", base},
		pidFile: base + ".pid", timeout: execTimeout, process: x.Process,
		stdin: x.Stdin, stdout: x.Stdout, stderr: x.Stderr,
	})
	if err != nil {
		return nil, err
	}
	if err = ctx.Err(); err == nil {
		err = adjust(p, x.Process)
	}
	if err != nil {
		if p.terminal != nil {
			p.terminal.Close()
		}
		_ = p.Signal(unix.SIGKILL)
		_ = p.wait(context.WithoutCancel(ctx)) // it is dead or as good as
		p.close()
		return nil, err
	}
	return p, nil
}

// outlive returns a context that ends some time after ctx does.
func outlive(ctx context.Context, grace time.Duration) (context.Context, context.CancelFunc) {
	longer, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		select {
		case <-longer.Done():
		case <-time.After(grace):
			cancel()
		}
	})
	return longer, func() { stop(); cancel() }
}

// adjust sets what runtimes don't take from the process of an exec: runc uses the container's oomScoreAdj, crun none.
func adjust(p *process, s *specs.Process) error {
	if s.OOMScoreAdj == nil {
		return nil
	}
	path := fmt.Sprintf("/proc/%d/oom_score_adj", p.pid)
	want := strconv.Itoa(*s.OOMScoreAdj)
	err := os.WriteFile(path, []byte(want), 0)
	// ESRCH: it has ended, and perhaps nobody has reaped it yet.
	if err != nil && !p.ended() && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("oom_score_adj %s: %w", want, err)
	}
	return nil
}

// Kill ends every process of the container through the runtime, which knows where they are (in a VM, in a sentry).
func (c *container) Kill(ctx context.Context) error {
	kill := func(args ...string) error {
		err := c.engine.run(ctx, invocation{args: append(append([]string{"kill"}, args...), c.id, "KILL"), dir: c.dir, timeout: killTimeout})
		if errdefs.IsNotFound(err) || errdefs.IsFailedPrecondition(err) {
			return nil // nothing of it is left
		}
		return err
	}
	// runc below 1.2 and crun kill only the first process without --all; runtimes that always kill all may not know it.
	err := kill("--all")
	if err != nil && ctx.Err() == nil {
		err = kill()
	}
	if err != nil {
		return fmt.Errorf("kill %s: %w", c.id, err)
	}
	return nil
}
