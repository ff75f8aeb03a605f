package native

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

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
}

// launch is how a stub is forked.
type launch struct {
	flags  uintptr // CLONE_NEW*
	cgroup *engine.Cgroup
	stdio  [3]*os.File // nil: /dev/null
}

// fork starts a stub from the calling thread, whose network, IPC, UTS and cgroup namespaces and pid namespace for
// children it gets. Go forks with CLONE_VFORK and CLONE_VM, which costs the same however large the process is.
func (e *Engine) fork(l launch) (_ *stub, err error) {
	s := &stub{engine: e, pidfd: -1}
	var theirs int
	if s.conn, theirs, err = pair(); err != nil {
		return nil, err
	}
	defer unix.Close(theirs)
	null := -1
	defer func() { closeFD(null) }()
	files := make([]uintptr, 4)
	for i, f := range l.stdio {
		if f != nil {
			files[i] = f.Fd()
			continue
		}
		if null < 0 {
			if null, err = e.reopen(int(e.stdin.Fd()), unix.O_RDWR); err != nil {
				s.conn.close()
				return nil, fmt.Errorf("%s: %w", os.DevNull, err)
			}
		}
		files[i] = uintptr(null)
	}
	files[3] = uintptr(theirs)
	attr := &syscall.ProcAttr{Env: []string{}, Dir: "/", Files: files,
		Sys: &syscall.SysProcAttr{Cloneflags: l.flags, PidFD: &s.pidfd}}
	if l.cgroup != nil && l.cgroup.Unified != "" {
		fd, err := unix.Open(l.cgroup.Unified, unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			s.conn.close()
			return nil, fmt.Errorf("cgroup %s: %w", l.cgroup.Unified, classify(err))
		}
		defer unix.Close(fd)
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, fd // CLONE_INTO_CGROUP, Linux 5.7
	}
	image := "/proc/self/fd/" + strconv.Itoa(int(e.image.Fd()))
	s.child, err = e.reaper.Fork(func() (int, error) { return syscall.ForkExec(image, []string{"cri-stub"}, attr) })
	if err != nil {
		s.conn.close()
		return nil, fmt.Errorf("fork: %w", err)
	}
	return s, nil
}

// joinV1 moves the stub into the cgroup's v1 hierarchies. It writes itself: a write of 0 to `tasks` by the process is
// many times cheaper than its parent's write of its pid to cgroup.procs. The kernel checks the rights of the opener.
func (s *stub) joinV1(cg *engine.Cgroup) error {
	if cg == nil || len(cg.V1) == 0 {
		return nil
	}
	var fds []int
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	var names []string
	for name, dir := range cg.V1 {
		fd, err := unix.Open(dir+"/tasks", unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("cgroup %s: %s: %w", name, dir, classify(err))
		}
		fds, names = append(fds, fd), append(names, dir)
	}
	at, _, err := s.call(opCgroup, 0, nil, fds...)
	if err != nil && at < len(names) {
		return fmt.Errorf("join cgroup %s: %w", names[at], err)
	}
	return err
}

// refork replaces the stub by a child of its own with further namespaces; CLONE_PARENT makes that our child. The old
// stub ends. Its pid namespace may not be ours, so the pid is read from the new pidfd.
func (s *stub) refork(flags uintptr) error {
	pidfd := -1
	child, err := s.engine.reaper.Fork(func() (int, error) {
		_, fd, err := s.call(opFork, uint64(flags), nil)
		if err != nil {
			return 0, err
		}
		pidfd = fd
		return s.engine.pidOf(fd)
	})
	if err != nil {
		closeFD(pidfd)
		return fmt.Errorf("fork in the namespaces: %w", err)
	}
	unix.Close(s.pidfd)
	s.child, s.pidfd = child, pidfd
	return nil
}

// pidOf reads the pid behind a pidfd as this process sees it.
func (e *Engine) pidOf(pidfd int) (int, error) {
	b, err := readAt(e.proc, "self/fdinfo/"+strconv.Itoa(pidfd))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "Pid:"); ok {
			pid, err := strconv.Atoi(strings.TrimSpace(v))
			if err == nil && pid > 0 {
				return pid, nil
			}
			return 0, errStubDied
		}
	}
	return 0, errors.New("no Pid in a pidfd's fdinfo")
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

// write writes to a file of the stub's proc directory.
func (s *stub) write(name, value string) error {
	d, err := s.dir()
	if err != nil {
		return err
	}
	defer d.Close()
	return writeAt(d, name, value)
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
	awaitEnd(s.child)
	closeFD(s.pidfd)
	s.pidfd = -1
}
