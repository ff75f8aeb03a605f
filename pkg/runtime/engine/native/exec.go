package native

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

// session is an exec session in the making.
type session struct {
	c        *container
	config   *engine.ExecConfig
	stub     *stub
	release  func()
	terminal *os.File
}

// inherit fills in what a session's process leaves open with what the container's own has, as runc does: a session must
// not be less confined because its maker forgot something.
func inherit(p, from *specs.Process) *specs.Process {
	q := *p
	if q.Capabilities == nil {
		q.Capabilities = from.Capabilities
	}
	if q.ApparmorProfile == "" {
		q.ApparmorProfile = from.ApparmorProfile
	}
	if q.SelinuxLabel == "" {
		q.SelinuxLabel = from.SelinuxLabel
	}
	if q.OOMScoreAdj == nil {
		q.OOMScoreAdj = from.OOMScoreAdj
	}
	if len(q.Rlimits) == 0 {
		q.Rlimits = from.Rlimits
	}
	if q.Scheduler == nil {
		q.Scheduler = from.Scheduler
	}
	if q.IOPriority == nil {
		q.IOPriority = from.IOPriority
	}
	if q.ExecCPUAffinity == nil {
		q.ExecCPUAffinity = from.ExecCPUAffinity
	}
	return &q
}

// Exec implements engine.Container.
func (c *container) Exec(ctx context.Context, config *engine.ExecConfig) (engine.Process, error) {
	if err := checkExec(config); err != nil {
		return nil, fmt.Errorf("exec in container %s: %w", c.id, err)
	}
	own := *config
	own.Process = inherit(config.Process, c.spec.Process)
	config = &own
	if c.init.ended() {
		return nil, fmt.Errorf("exec in container %s: it has ended: %w", c.id, errdefs.ErrFailedPrecondition)
	}
	id, err := newIdentity(config.Process, config.Seccomp, c.spec.Linux.Seccomp)
	if err == nil {
		err = id.common(c.id, c.spec.Linux)
	}
	if err != nil {
		return nil, fmt.Errorf("exec in container %s: %w", c.id, err)
	}
	p, err := c.exec(ctx, config, id)
	// The end of a pid namespace kills everybody else in it before its first process has ended, which has left its cgroup
	// even before that.
	grace := time.Duration(0)
	// At a limit of processes (EAGAIN) it fails as long as the container likes.
	if placing := (*placeError)(nil); errors.Is(err, errStubDied) || errors.As(err, &placing) && !errors.Is(err, unix.EAGAIN) {
		grace = 5 * time.Second // it waits for all others to be reaped
	}
	if err != nil && ctx.Err() == nil && c.init.dead(grace) { // whatever has failed because of that, its kind tells nothing
		err = fmt.Errorf("%w (%v)", gone(unix.ESRCH), err) //nolint:errorlint
	}
	if err != nil {
		return nil, fmt.Errorf("exec in container %s: %w", c.id, orContext(ctx, err))
	}
	return p, nil
}

// placeError is the failure of a step that needs the container to be there.
type placeError struct{ err error }

func (e *placeError) Error() string { return e.err.Error() }
func (e *placeError) Unwrap() error { return e.err }

// exec forks a stub, lets it join the container and become the program.
func (c *container) exec(ctx context.Context, config *engine.ExecConfig, id *identity) (_ *process, err error) {
	s := &session{c: c, config: config}
	defer func() {
		if s.release != nil {
			s.release()
		}
		if s.stub == nil {
			return
		}
		if err != nil {
			s.stub.kill()
			if s.terminal != nil {
				s.terminal.Close()
			}
			return
		}
		s.stub.conn.close()
	}()
	if s.simple() {
		err = s.atOnce(ctx, id)
	} else {
		err = s.stepwise(ctx, id)
	}
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil { // its end also closes the socket, which looks like success
		return nil, err
	}
	p := &process{child: s.stub.child, pidfd: s.stub.pidfd, terminal: s.terminal}
	c.track(p)
	return p, nil
}

// stepwise makes a session for which something is to be done between the steps.
func (s *session) stepwise(ctx context.Context, id *identity) error {
	if err := s.fork(ctx); err != nil {
		return &placeError{err}
	}
	if err := s.join(); err != nil {
		return &placeError{err}
	}
	if err := s.outside(); err != nil {
		return err
	}
	return s.stub.become(id)
}

// track remembers a session for Delete, and forgets those that have ended, whose pidfds need not stay open.
func (c *container) track(p *process) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.execs = slices.DeleteFunc(c.execs, func(p *process) bool {
		if p.ended() {
			p.close()
			return true
		}
		return false
	})
	c.execs = append(c.execs, p)
}

func (s *session) fork(ctx context.Context) (err error) {
	l, done, err := s.launch()
	if err != nil {
		return err
	}
	defer done()
	if s.stub, err = s.c.engine.fork(l); err != nil {
		return err
	}
	s.release = s.stub.guard(ctx)
	return nil
}

// openTerminal opens a pseudoterminal of the container's devpts, for which the thread, one to be thrown away, enters its
// mount namespace.
func (s *session) openTerminal() error {
	pidfd, err := s.c.init.dup()
	if err != nil {
		return err
	}
	defer unix.Close(pidfd)
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	if err := unix.Setns(pidfd, unix.CLONE_NEWNS); err != nil {
		return gone(err)
	}
	root, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(root)
	master, slave, err := s.c.engine.openPTY(root, s.config.Process.ConsoleSize)
	if err != nil {
		return err
	}
	s.terminal = master
	defer unix.Close(slave)
	uid, err := s.c.ids.uid(s.config.Process.User.UID)
	if err != nil {
		return err
	}
	if err := unix.Fchown(slave, int(uid), -1); err != nil {
		return err
	}
	if err := s.stub.do(opTTY, 0, nil, slave); err != nil {
		return fmt.Errorf("controlling terminal: %w", err)
	}
	return nil
}

func (s *session) settled() error {
	err := s.stub.settled()
	var join *joinError
	if errors.As(err, &join) {
		return gone(join.err)
	}
	return err
}

// join waits until the stub is in the cgroup and then in all namespaces at once; in the other order a cgroup namespace
// would show it the host's path. Into the pid namespace goes a child of it, made when nothing of the host is left to be
// seen: there are processes there which may have the right to look into others (CAP_SYS_PTRACE), through /proc/PID/root,
// and this process's own child would, before its execve, share all memory and files with it.
func (s *session) join() error {
	settled := s.settled
	if s.c.joins&unix.CLONE_NEWUSER != 0 {
		if err := settled(); err != nil {
			return err
		}
		if err := s.stub.do(opSetID, 0, nil); err != nil {
			return fmt.Errorf("become root of the user namespace: %w", err)
		}
		settled = nil
	}
	if s.c.joins&unix.CLONE_NEWPID != 0 {
		if err := s.stub.refork(0, settled); err != nil {
			return err
		}
	} else if settled != nil {
		if err := settled(); err != nil {
			return err
		}
	}
	if s.config.Process.Terminal {
		return onThread(s.openTerminal)
	}
	return nil
}

// outside sets what is set from outside of the container.
func (s *session) outside() error {
	p := s.config.Process
	if err := s.stub.setOOMScoreAdj(p.OOMScoreAdj); err != nil {
		return err
	}
	if err := ownPipes(s.c.ids, p.User.UID, s.config.Stdin, s.config.Stdout, s.config.Stderr); err != nil {
		return err
	}
	if err := setAffinity(s.stub.child.Pid(), s.affinity().Final); err != nil {
		return fmt.Errorf("execCPUAffinity.final: %w", err)
	}
	return s.stub.limit(p)
}

func (s *session) cgroup() *engine.Cgroup {
	if s.config.Cgroup != nil {
		return s.config.Cgroup
	}
	return s.c.cgroup.Cgroup()
}

func (s *session) affinity() specs.CPUAffinity {
	if a := s.config.Process.ExecCPUAffinity; a != nil {
		return *a
	}
	return specs.CPUAffinity{}
}

// dup duplicates the pidfd, so that a Delete at the same time can't pull it away.
func (p *process) dup() (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pidfd < 0 {
		return -1, gone(unix.ESRCH)
	}
	return unix.FcntlInt(uintptr(p.pidfd), unix.F_DUPFD_CLOEXEC, 3)
}

// gone names the reason why the namespaces of a process can't be joined.
func gone(err error) error {
	if errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("the container has ended: %w", errdefs.ErrFailedPrecondition)
	}
	return fmt.Errorf("join the container's namespaces: %w", err)
}
