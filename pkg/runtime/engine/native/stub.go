package native

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/reaper"
)

// stub is a process that waits for orders to become the container's, or a session's, program.
type stub struct {
	conn
	engine *Engine
	child  *reaper.Child
	pidfd  int
	launch launch
	tasks  []string // the v1 cgroups that it joins

	pid    int      // once the nursery has told it
	unborn error    // why there is none
	early  []answer // the stub's own that came before the nursery's
	// awaited are the answers that are still to come, in their order: each is given to its function.
	awaited []func(at int, err error) error
}

// answer is one answer of a stub: a value, and a descriptor or -1.
type answer struct {
	val, fd int
	err     error
}

// launch is how a stub is forked, and what it does at first: it joins its cgroup and then namespaces, and then makes
// further ones.
type launch struct {
	clone, unshare uintptr // CLONE_NEW* of the namespaces that it is forked into, and that it makes in its cgroup
	cgroup         *engine.Cgroup
	joins          []int       // namespaces to join, or one pidfd with the flags in join
	join           uintptr     // 0: whatever joins are
	stdio          [3]*os.File // nil: /dev/null
	affinity       string      // the CPUs that it begins on; "": any
	closing        []int       // to be closed when all is done
	of             *container  // whose own the v1 directories of cgroup are, for the taskCache; nil: nobody's
	atOnce         bool        // it gets all its orders at once
}

// forking is a stub that the nursery has the order to fork.
type forking struct {
	engine       *Engine
	launch       launch
	fds, closing []int
	tasks        []string
	kept         *taskFiles // of the taskCache
	stub         *stub
	forked       func(pid int) *reaper.Child
}

// fork starts a stub. It answers with settled before anything else.
func (e *Engine) fork(l launch) (*stub, error) {
	f, err := e.beginFork(l)
	if err != nil {
		return nil, err
	}
	return f.finish(nil)
}

// beginFork begins with fork; finish must follow.
func (e *Engine) beginFork(l launch) (_ *forking, err error) {
	f := &forking{engine: e, launch: l, closing: l.closing}
	defer func() {
		if err != nil {
			f.close()
		}
	}()
	var null int
	if f.fds, null, err = e.stdio(l.stdio); err != nil {
		return nil, err
	}
	f.closing = append(f.closing, null)
	if cg := l.cgroup; cg != nil {
		// A cgroup2 directory for CLONE_INTO_CGROUP, Linux 5.7.
		if cg.Unified != "" {
			fd, err := unix.Open(cg.Unified, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return nil, fmt.Errorf("cgroup %s: %w", cg.Unified, classify(err))
			}
			f.fds, f.closing = append(f.fds, fd), append(f.closing, fd)
		}
		if err := f.openTasks(cg); err != nil {
			return nil, err
		}
	}
	f.fds = append(f.fds, l.joins...)
	return f, f.order()
}

// stdio are the descriptors of a stub's stdio. null is to be closed.
func (e *Engine) stdio(files [3]*os.File) (fds []int, null int, err error) {
	null = -1
	for _, file := range files {
		if file != nil {
			fds = append(fds, int(file.Fd()))
			continue
		}
		if null < 0 {
			if null, err = e.reopen(int(e.stdin.Fd()), unix.O_RDWR); err != nil {
				return nil, -1, fmt.Errorf("%s: %w", os.DevNull, err)
			}
		}
		fds = append(fds, null)
	}
	return fds, null, nil
}

// order gives the nursery its order, with the descriptors that follow the stub's socket.
func (f *forking) order() error {
	c, theirs, err := pair()
	if err != nil {
		return err
	}
	f.stub = &stub{conn: c, engine: f.engine, pidfd: -1, launch: f.launch, tasks: f.tasks}
	f.stub.awaited = append(f.stub.awaited, f.stub.launched)
	f.forked = f.engine.reaper.Expect()
	if err := f.engine.nursery.spawn(f.stub, append([]int{theirs}, f.fds...)); err != nil {
		f.stub.conn.close()
		return fmt.Errorf("fork: %w", err)
	}
	return nil
}

// finish takes over what was forked. meanwhile, unless nil, is called before it waits; with its error there is no stub.
func (f *forking) finish(meanwhile func() error) (*stub, error) {
	defer f.close()
	var other error
	if meanwhile != nil {
		other = meanwhile()
	}
	pid, err := f.stub.spawned()
	if errors.Is(err, errStubDied) && other == nil { // the nursery was killed before it forked: once more, with another
		f.stub.conn.close()
		if err := f.order(); err != nil {
			return nil, err
		}
		pid, err = f.stub.spawned()
	}
	if err != nil {
		f.stub.conn.close()
		return nil, errors.Join(other, fmt.Errorf("fork: %w", err))
	}
	f.stub.child = f.forked(pid)
	if other != nil {
		f.stub.kill()
		return nil, other
	}
	return f.stub, nil
}

func (f *forking) close() {
	for _, fd := range f.closing {
		closeFD(fd)
	}
	f.closing = nil
	if f.kept != nil {
		f.engine.tasks.release(f.kept)
		f.kept = nil
	}
}

// spawned waits for the nursery's word on the fork, and returns the pid. The second time it only tells it again.
func (s *stub) spawned() (pid int, err error) {
	for s.pid == 0 && s.unborn == nil {
		val, fd, err := s.reply()
		var failed *stubError
		switch {
		case fd >= 0 && val > 0:
			s.pid, s.pidfd = val, fd
		case err != nil && (!errors.As(err, &failed) || failed.val == spawnFailed):
			s.unborn = err
		default:
			s.early = append(s.early, answer{val, fd, err}) // the fork's own, which was faster
		}
	}
	s.engine.nursery.told(s)
	return s.pid, s.unborn
}

// ask sends an order whose answer is for settled, and that for heard.
func (s *stub) ask(heard func(at int, err error) error, op uint32, a uint64, payload []byte, fds ...int) error {
	if err := s.order(op, a, payload, fds...); err != nil {
		return err
	}
	s.awaited = append(s.awaited, heard)
	return nil
}

// next returns the stub's next answer.
func (s *stub) next() (val, fd int, err error) {
	if len(s.early) > 0 {
		a := s.early[0]
		s.early = s.early[1:]
		return a.val, a.fd, a.err
	}
	return s.answer()
}

// settled waits for all answers that are still to come, first of all for that to the stub's launch.
func (s *stub) settled() error { return s.settledBut(0) }

// settledBut leaves the last answers to come.
func (s *stub) settledBut(last int) error {
	for len(s.awaited) > last {
		heard := s.awaited[0]
		s.awaited = s.awaited[1:]
		at, fd, err := s.next()
		closeFD(fd)
		if errors.Is(err, io.EOF) {
			err = errStubDied
		}
		if err := heard(at, err); err != nil {
			return err
		}
	}
	return nil
}

// launched makes out which of the things that a stub does at first has failed.
func (s *stub) launched(at int, err error) error {
	var failed *stubError
	switch {
	case err == nil || !errors.As(err, &failed):
		return err
	case at < len(s.tasks):
		return fmt.Errorf("join cgroup %s: %w", s.tasks[at], err)
	case at < len(s.tasks)+len(s.launch.joins):
		return &joinError{at - len(s.tasks), err}
	}
	return fmt.Errorf("new namespaces: %w", err)
}

// call sends an order and waits for its answer.
func (s *stub) call(op uint32, a uint64, payload []byte, fds ...int) (val, fd int, err error) {
	if err := s.settled(); err != nil {
		return 0, -1, err
	}
	return s.conn.call(op, a, payload, fds...)
}

// do is call for orders that answer with nothing but success.
func (s *stub) do(op uint32, a uint64, payload []byte, fds ...int) error {
	_, fd, err := s.call(op, a, payload, fds...)
	closeFD(fd)
	return err
}

// joinError is why a stub could not join launch.joins[at].
type joinError struct {
	at  int
	err error
}

func (e *joinError) Error() string { return "join a namespace: " + e.err.Error() }
func (e *joinError) Unwrap() error { return e.err }

// refork replaces the stub, which is in this process's pid namespace, by a child of its own with further namespaces;
// CLONE_PARENT makes that our child. The old stub ends. before, if not nil, takes an answer that is still to come when
// the order is sent.
func (s *stub) refork(flags uintptr, before func() error) error {
	pidfd := -1
	child, err := s.engine.reaper.Fork(func() (int, error) {
		sent := s.order(opFork, uint64(flags), nil)
		if before != nil {
			if err := before(); err != nil { // that is why, should the order have failed too
				return 0, err
			}
		}
		if sent != nil {
			return 0, sent
		}
		pid, fd, err := s.reply()
		pidfd = fd
		return pid, err
	})
	if err != nil {
		closeFD(pidfd)
		return fmt.Errorf("fork in the namespaces: %w", err)
	}
	unix.Close(s.pidfd)
	s.child, s.pidfd = child, pidfd
	return nil
}

// dir opens the stub's directory in proc and makes sure that it is the stub's: a pid may be used again once the
// process was reaped, a directory opened while it lives may not.
func (s *stub) dir() (*os.File, error) {
	d, err := openAt(s.engine.proc, strconv.Itoa(s.child.Pid()), unix.O_PATH|unix.O_DIRECTORY)
	if err == nil {
		if err = unix.PidfdSendSignal(s.pidfd, 0, nil, 0); err == nil {
			return d, nil
		}
		d.Close()
	}
	return nil, errStubDied
}

// write writes to a file of the stub's proc directory; see dir.
func (s *stub) write(name, value string) error {
	f, err := openAt(s.engine.proc, strconv.Itoa(s.child.Pid())+"/"+name, unix.O_WRONLY)
	if errors.Is(err, unix.ENOENT) {
		return errStubDied
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if unix.PidfdSendSignal(s.pidfd, 0, nil, 0) != nil {
		return errStubDied
	}
	_, err = f.WriteString(value)
	return err
}

// namespaceFD opens one of the stub's namespaces: by ioctl since Linux 6.11, else through proc.
func (s *stub) namespaceFD(ioctl uintptr, name string) (*os.File, error) {
	if r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(s.pidfd), ioctl, 0); errno == 0 {
		return os.NewFile(r, name), nil
	}
	d, err := s.dir()
	if err != nil {
		return nil, err
	}
	defer d.Close()
	fd, err := unix.Openat(int(d.Fd()), "ns/"+name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%s namespace: %w", name, err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

func (s *stub) userNS() (*os.File, error) {
	return s.namespaceFD(unix.PIDFD_GET_USER_NAMESPACE, "user")
}

func (s *stub) pidNS() (*os.File, error) {
	return s.namespaceFD(unix.PIDFD_GET_PID_NAMESPACE, "pid")
}

// ids reads the id mapping of the stub's user namespace.
func (s *stub) ids() (idMap, error) {
	d, err := s.dir()
	if err != nil {
		return idMap{}, err
	}
	defer d.Close()
	var m idMap
	for _, f := range []struct {
		name string
		to   *[]specs.LinuxIDMapping
	}{{"uid_map", &m.uids}, {"gid_map", &m.gids}} {
		b, err := readAt(d, f.name)
		if err == nil {
			*f.to, err = parseMap(b)
		}
		if err != nil {
			return idMap{}, err
		}
	}
	return m, nil
}

// kill ends the stub and waits until it is reaped.
func (s *stub) kill() {
	_ = unix.PidfdSendSignal(s.pidfd, unix.SIGKILL, nil, 0)
	s.conn.close()
	for _, a := range s.early {
		closeFD(a.fd)
	}
	awaitEnd(s.child)
	closeFD(s.pidfd)
	s.pidfd = -1
}
