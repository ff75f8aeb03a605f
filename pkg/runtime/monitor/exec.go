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
	mu   sync.Mutex
	seq  uint64
	live map[uint64]*session // by number; nil when there are none
	idle chan struct{}       // closed when none is live; nil until somebody waits
	dirs []*sessionCgroup    // of running sessions, and of those that left processes
	own  own
}

// began tells the session's process.
func (e *execSet) began(x *session, proc engine.Process) {
	e.mu.Lock()
	defer e.mu.Unlock()
	x.proc = proc
}

func (e *execSet) enter(x *session) {
	if e.live == nil {
		e.live = map[uint64]*session{}
	}
	e.live[x.n] = x
}

// add notes a session's cgroup.
func (e *execSet) add(cg *sessionCgroup) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.dirs = append(e.dirs, cg)
}

// end forgets a session. Its cgroup, if it has one, is removed, now or when its last process has gone.
func (e *execSet) end(x *session) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if x.cg != nil {
		x.cg.ended = true
	}
	e.sweep()
	if delete(e.live, x.n); len(e.live) > 0 {
		return
	}
	e.live = nil
	if e.idle != nil {
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
	if len(e.live) == 0 {
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

// killSession ends session n, or what it has left behind, and returns when its processes are gone. ErrNotFound when
// there is nothing of it.
func (e *execSet) killSession(n uint64) error {
	e.mu.Lock()
	var proc engine.Process
	if x := e.live[n]; x != nil {
		proc = x.proc
	}
	var found *sessionCgroup
	for _, cg := range e.dirs {
		if cg.n == n {
			found = cg
		}
	}
	e.mu.Unlock()
	switch {
	case found != nil:
		err := found.kill()
		e.mu.Lock()
		defer e.mu.Unlock()
		e.sweep()
		return err
	case proc != nil:
		killTree(proc)
		select {
		case <-proc.Child().Done():
			return nil
		case <-time.After(settleTime):
			return fmt.Errorf("exec session %d: process %d does not end: %w", n, proc.Pid(), errdefs.ErrUnavailable)
		}
	}
	return fmt.Errorf("exec session %d: %w", n, errdefs.ErrNotFound)
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
	c.execs.begin(x, call.Session)
	if c.oci == nil && c.cgroup != (engine.PackedCgroup{}) {
		var err error
		if cfg.Cgroup, x.cg, err = newSessionCgroup(c.cgroup.Cgroup(), x.n); err != nil {
			c.s.log.Warn("exec without a cgroup of its own", "container", c.id, "err", err)
		} else {
			c.execs.add(x.cg)
		}
	}
	var proc engine.Process
	err := faultpoint.Hit("monitor.exec.cgroup")
	if err == nil {
		proc, err = c.ctr.Exec(ctx, cfg)
	}
	if err != nil {
		if x.cg != nil {
			_ = x.cg.kill() // what the engine could not take back
		}
		c.execs.end(x)
		return nil, fmt.Errorf("exec in container %s: %w", c.id, err)
	}
	c.execs.began(x, proc)
	return x, nil
}

// kill ends the whole process tree of the session, or what it has left behind.
func (x *session) kill() {
	if err := x.c.execs.killSession(x.n); err != nil && !errdefs.IsNotFound(err) {
		x.c.s.log.Error("exec session may live on", "container", x.c.id, "err", err)
	}
}

// finish is called when the process was reaped. Processes that it left behind run on, as they do with containerd, until
// the container ends; after kill there are none.
func (x *session) finish() { x.c.execs.end(x) }

// exec starts an exec session; the connection serves it from now on.
func (c *conn) exec(f *frame) error {
	var call stdioCall
	if err := f.decode(&call); err != nil {
		return c.fail(f.id, err)
	}
	call.Env.Restore(call.Process)
	ct, err := c.s.find(call.ID)
	if err == nil && f.kind == kindExecOwn {
		err = ct.complete(&call)
	}
	if err != nil {
		return c.fail(f.id, err)
	}
	if call.Own {
		ct.execs.learn(call.Seccomp)
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
	task := &execTask{id: f.id, x: x, releases: call.Releases}
	started := execStarted{x.proc.Pid(), x.n, call.Releases}
	if call.Brief && terminal == nil && task.soon(c) {
		task.untold = &started
		if err := task.tell(c); err != nil || !call.Releases {
			return err
		}
		c.task = task
		return nil
	}
	c.task = task
	err = c.write(kindStarted, f.id, started, terminal...)
	for _, t := range terminal {
		t.Close()
	}
	if err != nil {
		c.cancel()
	}
	return nil
}

// briefTime is how long a program may run whose start is told with its end.
const briefTime = 2 * time.Millisecond

// soon waits for the end of the program, for briefTime at most.
func (t *execTask) soon(c *conn) bool {
	end := time.NewTimer(briefTime)
	defer end.Stop()
	select {
	case <-t.x.proc.Child().Done():
		return true
	case <-end.C:
	case <-c.ctx.Done():
	}
	return false
}

// execTask is a session with its client: it ends with the connection.
//
// The end of the program does not end it. A program may end because its client goes, which hangs up its terminal and
// closes its stdin; what it has started must go too then, and here the two ends are seen in either order. So the client
// says when it has taken the exit code (kindRelease) and what is left may stay.
type execTask struct {
	id       uint64 // of the request
	x        *session
	releases bool         // the client does so
	told     bool         // the exit code; finish was called
	untold   *execStarted // to be told with the exit code
}

// run reports the exit, and kills the session when the client asks for it or leaves.
func (t *execTask) run(c *conn) error {
	for {
		// What the client had sent when a freeze began, its release even: the next request must not be taken for it.
		if g := c.pop(); g != nil {
			if over, err := t.handle(c, g); over || err != nil {
				return err
			}
			continue
		}
		ended := t.x.proc.Child().Done()
		if t.told {
			ended = nil
		}
		select {
		case <-ended:
			if err := t.tell(c); err != nil || !t.releases {
				return err
			}
		case g := <-c.frames:
			if over, err := t.handle(c, g); over || err != nil {
				return err
			}
		case <-c.ctx.Done():
			t.x.kill()
			t.settle()
			return c.ctx.Err()
		case <-c.frozen:
			return errFrozen
		}
	}
}

// handle takes what the client sends while the session is there. A release that comes too early is passed over.
func (t *execTask) handle(c *conn, g *frame) (over bool, err error) {
	g.closeFiles()
	switch g.kind {
	case kindExecKill:
		t.x.kill()
	case kindRelease:
		return t.told, nil
	default: // else nobody would ever answer
		return false, c.fail(g.id, fmt.Errorf("request of kind %d on an exec's connection: %w", g.kind, errdefs.ErrFailedPrecondition))
	}
	return false, nil
}

// tell reports the exit, and then takes the session's cgroup away, for which the client need not wait.
func (t *execTask) tell(c *conn) error {
	status, _ := t.x.proc.Child().Wait(context.Background())
	err := c.write(kindExited, t.id, execExited{status.Code(), t.untold})
	if err != nil { // the client has gone
		t.x.kill()
	}
	t.x.finish()
	t.told = true
	return err
}

// settle is called when the session was killed and nobody wants to know more.
func (t *execTask) settle() {
	if t.told {
		return
	}
	select {
	case <-t.x.proc.Child().Done():
	case <-time.After(killTime): // in an uninterruptible sleep; the Reaper gets it later
	}
	t.x.finish()
}

func (t *execTask) save() (savedTask, []int) {
	v := savedTask{Kind: "exec", ID: t.id, Container: t.x.c.id, Session: t.x.n, Pid: t.x.proc.Pid(), Releases: t.releases, Told: t.told}
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
