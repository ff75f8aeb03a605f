package native

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/reaper"
)

// Flags of opRun, see struct run in stub/stub.h.
const (
	runFork = 1 << iota
	runKeep
	runScore
)

// maxLimits is how many resource limits the stub takes with opRun.
const maxLimits = 64

// glance is how often a session that is being made looks whether its caller has given up.
const glance = 20 * time.Millisecond

// simple tells whether a session can be made at once: nothing is to be done from outside between its stub's steps.
func (s *session) simple() bool {
	p := s.config.Process
	return s.c.joins&unix.CLONE_NEWUSER == 0 && !p.Terminal && len(p.Rlimits) <= maxLimits &&
		p.Scheduler == nil && p.IOPriority == nil && p.ExecCPUAffinity == nil
}

// atOnce gives the stub all its orders when that is not even forked, and waits once: until the socket is closed, which is
// when the program runs, or when there is no process left that could become it. Each answer that is waited for costs a
// wake-up on both sides, and here there would be four.
func (s *session) atOnce(ctx context.Context, id *identity) error {
	if err := ownPipes(s.c.ids, s.config.Process.User.UID, s.config.Stdin, s.config.Stdout, s.config.Stderr); err != nil {
		return err
	}
	err := s.tryAtOnce(ctx, id)
	if errors.Is(err, errUnborn) || errors.Is(err, errOutdated) { // once more, with another nursery, or files
		err = s.tryAtOnce(ctx, id)
	}
	return err
}

var (
	// errUnborn is the death of the nursery before the fork.
	errUnborn = fmt.Errorf("fork: %w", errStubDied)
	// errOutdated: a v1 cgroup was removed since its file was opened, and perhaps made again.
	errOutdated = fmt.Errorf("join the container's cgroup: %w", unix.ENODEV)
)

func (s *session) tryAtOnce(ctx context.Context, id *identity) error {
	l, done, err := s.launch()
	if err != nil {
		return &placeError{err}
	}
	forked := s.c.engine.reaper.Expect()
	f, err := s.c.engine.beginFork(l)
	if err != nil {
		done()
		return &placeError{err}
	}
	payload, files := s.orders(id)
	sent := f.stub.order(opRun, 0, payload, files...)
	if sent != nil { // it does not get the rest, and must not wait for it
		_ = unix.Shutdown(f.stub.fd, unix.SHUT_WR)
	}
	f.close() // while the nursery is at work
	done()
	waited := f.stub.awaitClose(ctx)
	if s.stub, err = f.take(); err != nil {
		switch {
		case errors.Is(err, errStubDied):
			return errUnborn
		case errdefs.IsUnavailable(err): // nothing of the container's
			return err
		}
		return &placeError{err}
	}
	if waited != nil {
		s.giveUp(forked)
		return waited
	}
	if err := s.settled(); err != nil {
		if l.of != nil && errors.Is(err, unix.ENODEV) {
			s.c.engine.tasks.outdated(s.c.id)
			s.stub.kill()
			s.stub, err = nil, errOutdated
		}
		return &placeError{err}
	}
	if sent != nil {
		return classify(sent)
	}
	return s.became(id, forked)
}

// launch is how the session's stub is forked; done closes what that needs.
func (s *session) launch() (l launch, done func(), err error) {
	pidfd, err := s.c.init.dup()
	if err != nil {
		return l, nil, err
	}
	l = launch{join: s.c.joins, cgroup: s.cgroup(), affinity: s.affinity().Initial, atOnce: s.simple()}
	l.stdio[0], l.stdio[1], l.stdio[2] = s.config.Stdin, s.config.Stdout, s.config.Stderr
	if l.join != 0 {
		l.joins = []int{pidfd}
	}
	// With a cgroup of its own in the unified hierarchy it is in the container's v1 cgroups. (Without one it may be a hook, whose
	// container is not made yet.)
	if c := s.config.Cgroup; c != nil && c.Unified != "" {
		l.of = s.c
	}
	return l, func() { unix.Close(pidfd) }, nil
}

// forks tells whether the program is a child of the stub, see join.
func (s *session) forks() bool { return s.c.joins&unix.CLONE_NEWPID != 0 }

// orders is the payload of opRun, and what goes with it.
func (s *session) orders(id *identity) (payload []byte, files []int) {
	p := s.config.Process
	flags := uint32(0)
	if s.forks() {
		flags |= runFork
	}
	files = id.files(s.c.engine)
	if files != nil {
		flags |= runKeep
	}
	var score [16]byte
	if p.OOMScoreAdj != nil {
		flags |= runScore
		copy(score[:], strconv.Itoa(*p.OOMScoreAdj))
		files = []int{int(s.c.engine.proc.Fd())}
	}
	rest := id.payload()
	b := make([]byte, 0, 8+len(score)+24*len(p.Rlimits)+len(rest))
	b = binary.NativeEndian.AppendUint32(b, flags)
	b = binary.NativeEndian.AppendUint32(b, uint32(len(p.Rlimits)))
	b = append(b, score[:]...)
	for _, r := range p.Rlimits {
		for _, v := range []uint64{uint64(rlimits[r.Type]), r.Soft, r.Hard} {
			b = binary.NativeEndian.AppendUint64(b, v)
		}
	}
	return append(b, rest...), files
}

// awaitClose waits until nobody has the stub's end of the socket any more. poll(2) for POLLRDHUP alone is not woken by
// answers.
func (s *stub) awaitClose(ctx context.Context) error {
	fds := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLRDHUP}}
	for end := time.Now().Add(answerTimeout); ; {
		n, err := unix.Poll(fds, int(glance.Milliseconds()))
		switch {
		case n > 0:
			return nil
		case err != nil && err != unix.EINTR:
			return fmt.Errorf("stub: poll: %w", err)
		case ctx.Err() != nil:
			return ctx.Err()
		case time.Now().After(end):
			return s.failed("receive", unix.EAGAIN)
		}
	}
}

// take takes over what was forked. errStubDied: nothing was. A nursery that was killed between the fork and its word on it
// leaves a stub that is not known, and may have become the program: that must not be done again, and is for who has the
// session's cgroup.
func (f *forking) take() (*stub, error) {
	pid, err := f.stub.spawned()
	if err != nil {
		f.stub.conn.close()
		born := len(f.stub.early) > 0
		for _, a := range f.stub.early {
			closeFD(a.fd)
		}
		if born && errors.Is(err, errStubDied) {
			return nil, fmt.Errorf("fork: the process that forks was killed as it did: %w", errdefs.ErrUnavailable)
		}
		return nil, fmt.Errorf("fork: %w", err)
	}
	f.stub.child = f.forked(pid)
	return f.stub, nil
}

// giveUp kills the stub, and leaves as s.stub what it has forked, to be killed too. A fork that it has not told of yet is
// for who has the session's cgroup.
func (s *session) giveUp(forked func(pid int) *reaper.Child) {
	_ = unix.PidfdSendSignal(s.stub.pidfd, unix.SIGKILL, nil, 0)
	awaitEnd(s.stub.child)
	_ = unix.Shutdown(s.stub.fd, unix.SHUT_RDWR) // what was answered can still be read, and ends
	if s.settled() == nil {
		_, _, _ = s.answers(forked)
	}
}

// answers reads what was answered to opRun after the socket was closed: errno and step of a failure, whether there was a
// fork, which has then taken the stub's place.
func (s *session) answers(forked func(pid int) *reaper.Child) (bore bool, at int, err error) {
	for {
		val, fd, e := s.stub.next()
		switch {
		case errors.Is(e, io.EOF):
			return bore, at, err
		case fd >= 0 && val < 0:
			unix.Close(s.stub.pidfd)
			bore, s.stub.child, s.stub.pidfd = true, forked(-val), fd
		case e == nil:
			return bore, 0, errors.New("stub: answered to the order to exec")
		default: // the fork's own may have come before that of who has forked it
			closeFD(fd)
			at, err = val, e
			if failed := (*stubError)(nil); !errors.As(e, &failed) {
				return bore, at, err
			}
		}
	}
}

// became tells whether the stub, or its fork, has become the program.
func (s *session) became(id *identity, forked func(pid int) *reaper.Child) error {
	bore, at, err := s.answers(forked)
	switch {
	case err != nil && at == forkFailed:
		return &placeError{fmt.Errorf("fork in the namespaces: %w", err)}
	case err != nil:
		return runError(at, err, s.config.Process, id.args[0])
	case s.forks() && !bore:
		return &placeError{fmt.Errorf("fork in the namespaces: %w", errStubDied)}
	}
	return nil
}

// runError names the step at which opRun has failed.
func runError(at int, err error, p *specs.Process, name string) error {
	if failed := (*stubError)(nil); !errors.As(err, &failed) || at < stepScore {
		return stepError(at, err, name)
	}
	if at == stepScore {
		return fmt.Errorf("process.oomScoreAdj %d: %w", *p.OOMScoreAdj, classify(err))
	}
	if i := at - stepLimit; i < len(p.Rlimits) {
		r := p.Rlimits[i]
		return fmt.Errorf("process.rlimits: %s %d:%d: %w", r.Type, r.Soft, r.Hard, classify(err))
	}
	return err
}
