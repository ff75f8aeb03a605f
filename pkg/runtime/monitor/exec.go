package monitor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/seed-9a14075a/cri-server/pkg/faultpoint"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

// execSet are the exec sessions of one container.
type execSet struct {
	mu    sync.Mutex
	seq   uint64
	count int
	idle  chan struct{}    // closed when count is 0; nil until somebody waits
	dirs  []*sessionCgroup // of running sessions, and of those that left processes
}

func (e *execSet) begin() uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.seq++
	e.count++
	return e.seq
}

// add notes a session's cgroup.
func (e *execSet) add(cg *sessionCgroup) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.dirs = append(e.dirs, cg)
}

// end forgets a session. Its cgroup (nil: none) is removed, now or when its last process has gone.
func (e *execSet) end(cg *sessionCgroup) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if cg != nil {
		cg.ended = true
	}
	e.sweep()
	if e.count--; e.count == 0 && e.idle != nil {
		close(e.idle)
		e.idle = nil
	}
}

// sweep removes the cgroups of ended sessions that have become empty; rmdir(2) fails with EBUSY on the others.
func (e *execSet) sweep() {
	e.dirs = slices.DeleteFunc(e.dirs, func(cg *sessionCgroup) bool { return cg.ended && cg.remove() == nil })
	if len(e.dirs) == 0 {
		e.dirs = nil
	}
}

// kill ends all sessions, and what ended ones have left.
func (e *execSet) kill() error {
	e.mu.Lock()
	dirs := slices.Clone(e.dirs)
	e.mu.Unlock()
	var errs []error
	for _, cg := range dirs {
		errs = append(errs, cg.kill())
	}
	return errors.Join(errs...)
}

// wait returns when no session is left.
func (e *execSet) wait(ctx context.Context) error {
	e.mu.Lock()
	if e.count == 0 {
		e.mu.Unlock()
		return nil
	}
	if e.idle == nil {
		e.idle = make(chan struct{})
	}
	idle := e.idle
	e.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// removeCgroups is called when the container has no process any more.
func (e *execSet) removeCgroups() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, cg := range e.dirs {
		_ = cg.removeSoon()
	}
	e.dirs = nil
}

// killSession ends session n, whose cri-monitor has died. ErrNotFound when there is nothing of it.
func (e *execSet) killSession(n uint64) error {
	e.mu.Lock()
	var found *sessionCgroup
	for _, cg := range e.dirs {
		if cg.n == n {
			found = cg
		}
	}
	e.mu.Unlock()
	if found == nil {
		return fmt.Errorf("exec session %d: %w", n, errdefs.ErrNotFound)
	}
	return found.kill()
}

// session is one exec.
type session struct {
	c    *container
	n    uint64 // of the container
	proc engine.Process
	cg   *sessionCgroup // nil: killed by its process tree
}

// exec starts a session. The caller must call finish after the process was reaped.
func (c *container) exec(ctx context.Context, call *stdioCall, stdio [3]*os.File) (*session, error) {
	if st := c.state.Load(); st.Status != Running {
		return nil, fmt.Errorf("exec in container %s: it is %s, not running: %w", c.id, st.Status, errdefs.ErrFailedPrecondition)
	}
	if call.Process == nil || len(call.Process.Args) == 0 {
		return nil, fmt.Errorf("exec in container %s: no program: %w", c.id, errdefs.ErrInvalidArgument)
	}
	if call.Process.OOMScoreAdj == nil {
		call.Process.OOMScoreAdj = c.oomScoreAdj
	}
	for _, f := range stdio {
		c.giveTo(f, call.Process.User)
	}
	x := &session{c: c}
	cfg := &engine.ExecConfig{Process: call.Process, Seccomp: call.Seccomp, Stdin: stdio[0], Stdout: stdio[1], Stderr: stdio[2]}
	x.n = c.execs.begin()
	if c.oci == nil && c.cgroup != nil {
		var err error
		if cfg.Cgroup, x.cg, err = newSessionCgroup(c.cgroup, x.n); err != nil {
			c.s.log.Warn("exec without a cgroup of its own", "container", c.id, "err", err)
		} else {
			c.execs.add(x.cg)
		}
	}
	err := faultpoint.Hit("monitor.exec.cgroup")
	if err == nil {
		x.proc, err = c.ctr.Exec(ctx, cfg)
	}
	if err != nil {
		if x.cg != nil {
			_ = x.cg.kill() // what the engine could not take back
		}
		c.execs.end(x.cg)
		return nil, fmt.Errorf("exec in container %s: %w", c.id, err)
	}
	return x, nil
}

// kill ends the whole process tree of the session.
func (x *session) kill() {
	if x.cg != nil {
		if err := x.cg.kill(); err != nil {
			x.c.s.log.Error("exec session may live on", "container", x.c.id, "err", err)
		}
		return
	}
	killTree(x.proc)
}

// finish is called when the process was reaped. Processes that it left behind run on, as they do with containerd, until
// the container ends; after kill there are none.
func (x *session) finish() { x.c.execs.end(x.cg) }

// exec starts an exec session; the connection serves it from now on.
func (c *conn) exec(f *frame) error {
	var call stdioCall
	if err := f.decode(&call); err != nil {
		return c.fail(f.id, err)
	}
	call.Env.Restore(call.Process)
	ct, err := c.s.find(call.ID)
	if err != nil {
		return c.fail(f.id, err)
	}
	stdio, err := call.files(f)
	if err != nil {
		return c.fail(f.id, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	x, err := ct.exec(ctx, &call, stdio)
	f.closeFiles() // they are the process's now
	if err != nil {
		return c.fail(f.id, err)
	}
	faultpoint.Pass("monitor.exec.started")
	var terminal []*os.File
	if t := x.proc.Terminal(); t != nil {
		terminal = append(terminal, t)
	}
	err = c.write(kindStarted, f.id, execStarted{x.proc.Pid(), x.n}, terminal...)
	for _, t := range terminal {
		t.Close()
	}
	if err != nil {
		c.cancel()
	}
	c.task = &execTask{f.id, x}
	return nil
}

// execTask is a session with its client: it ends with the connection.
type execTask struct {
	id uint64 // of the request
	x  *session
}

// run reports the exit, and kills the session when the client asks for it or leaves.
func (t *execTask) run(c *conn) error {
	child := t.x.proc.Child()
	for {
		select {
		case <-child.Done():
			status, _ := child.Wait(context.Background())
			t.x.finish()
			return c.write(kindExited, t.id, execExited{status.Code()})
		case g := <-c.frames:
			g.closeFiles()
			if g.kind == kindExecKill {
				t.x.kill()
			}
		case <-c.ctx.Done():
			t.x.kill()
			select {
			case <-child.Done():
			case <-time.After(killTime): // in an uninterruptible sleep; the Reaper gets it later
			}
			t.x.finish()
			return c.ctx.Err()
		case <-c.s.freezer.begun():
			return errFrozen
		}
	}
}

func (t *execTask) save() (savedTask, []int) {
	v := savedTask{Kind: "exec", ID: t.id, Container: t.x.c.id, Session: t.x.n, Pid: t.x.proc.Pid()}
	select {
	case <-t.x.proc.Child().Done():
		status, _ := t.x.proc.Child().Wait(context.Background())
		v.Ended, v.Code = true, status.Code()
	default:
	}
	return v, nil
}

// files returns the fds that came with f as stdin, stdout and stderr. They stay f's.
func (call *stdioCall) files(f *frame) ([3]*os.File, error) {
	var out [3]*os.File
	rest := f.files
	for i, has := range []bool{call.Stdin, call.Stdout, call.Stderr} {
		if !has {
			continue
		}
		if len(rest) == 0 {
			return out, fmt.Errorf("%d files for more streams: %w", len(f.files), errdefs.ErrInvalidArgument)
		}
		out[i], rest = rest[0], rest[1:]
	}
	if len(rest) > 0 {
		return out, fmt.Errorf("%d files for fewer streams: %w", len(f.files), errdefs.ErrInvalidArgument)
	}
	return out, nil
}
