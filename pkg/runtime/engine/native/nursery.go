package native

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/reaper"
)

// nursery is the process that all stubs are forked from: a stub itself, executed once and a few pages large, which takes
// less to fork than this process takes to fork and execute one, and holds up no other fork. It lies in a mount namespace
// with nothing but an empty file system, so that a container's own does not begin as a copy of all the host's mounts.
// It ends with its socket, at the latest with this process.
type nursery struct {
	mu   sync.Mutex
	stub *stub // nil after its death
	// ordered are the stubs that it has not told of yet, and which process has the order: one that died with it can't be told
	// from one that takes its time, as the fork itself keeps the socket open.
	telling sync.Mutex
	ordered map[*stub]*stub
}

// expect notes an order before it is given, told that it was answered, or never will be.
func (n *nursery) expect(s *stub) {
	n.telling.Lock()
	defer n.telling.Unlock()
	if n.ordered == nil {
		n.ordered = map[*stub]*stub{}
	}
	n.ordered[s] = n.stub
}

func (n *nursery) told(s *stub) {
	n.telling.Lock()
	defer n.telling.Unlock()
	delete(n.ordered, s)
}

// died cuts off who waits for an answer of a nursery that has ended. A stub with all its orders ends by itself, or has not begun;
// cut off, it would still obey, and nobody could tell from its answers that it is there.
func (n *nursery) died(nursery *stub) {
	n.telling.Lock()
	defer n.telling.Unlock()
	for s, of := range n.ordered {
		if of == nursery && !s.launch.atOnce {
			_ = unix.Shutdown(s.fd, unix.SHUT_RDWR)
		}
	}
}

// spawn orders the fork of s with the descriptors that struct spawn in stub/stub.h tells of, and closes the first of them,
// the stub's socket: so it ends when nobody is left who could answer on it. The answer is for s.spawned.
func (n *nursery) spawn(s *stub, fds []int) (err error) {
	defer func() {
		if fds[0] >= 0 {
			unix.Close(fds[0])
		}
	}()
	l := &s.launch
	b := make([]byte, 0, 40)
	for _, v := range []uintptr{l.clone, l.unshare, l.join} {
		b = binary.NativeEndian.AppendUint64(b, uint64(v))
	}
	unified := uint32(0)
	if l.cgroup != nil && l.cgroup.Unified != "" {
		unified = 1
	}
	for _, v := range []uint32{unified, uint32(len(s.tasks)), uint32(len(l.joins)), 0} {
		b = binary.NativeEndian.AppendUint32(b, v)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	defer func() {
		if err != nil {
			n.told(s)
		}
	}()
	for range 2 {
		if err = n.open(s.engine); err != nil {
			return err
		}
		n.expect(s)
		var back func()
		if back, err = n.bind(l.affinity); err == nil {
			if err = n.stub.order(opSpawn, 0, b, fds...); err == nil {
				unix.Close(fds[0])
				fds[0] = -1
				if l.affinity != "" { // it is bound until it has forked
					_, _ = s.spawned()
				}
				back()
				return nil
			}
			back()
		}
		if !errors.Is(err, errStubDied) && !errors.Is(err, unix.ESRCH) {
			return err
		}
		n.end() // it was killed: once more, with another
	}
	return err
}

// bind restricts the nursery, and so what it forks, to a list of CPUs, until back is called.
func (n *nursery) bind(list string) (back func(), err error) {
	if list == "" {
		return func() {}, nil
	}
	var before unix.CPUSet
	pid := n.stub.child.Pid()
	if err := unix.SchedGetaffinity(pid, &before); err != nil {
		return nil, fmt.Errorf("CPU affinity: %w", err)
	}
	if err := setAffinity(pid, list); err != nil {
		return nil, fmt.Errorf("CPU affinity: %w", err)
	}
	return func() { _ = unix.SchedSetaffinity(pid, &before) }, nil
}

// open starts the process, unless it is there. n.mu is held, or nobody else knows n.
func (n *nursery) open(e *Engine) (err error) {
	if n.stub == nil {
		if n.stub, err = e.newNursery(); err != nil {
			return fmt.Errorf("nursery: %w", err)
		}
		is := n.stub
		is.child.AfterExit(func(reaper.Status) { n.died(is) })
	}
	return nil
}

func (n *nursery) close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.end()
}

func (n *nursery) end() {
	if n.stub != nil {
		n.stub.kill()
		n.stub = nil
	}
}

// newNursery starts a nursery in namespaces of the process, whatever the calling thread's are.
func (e *Engine) newNursery() (s *stub, err error) {
	err = onThread(func() error {
		s, err = e.execStub()
		return err
	})
	if err != nil {
		return nil, err
	}
	nest, err := newEmpty()
	if err == nil {
		err = s.do(opNest, 0, nil, nest)
		unix.Close(nest)
	}
	if err != nil {
		s.kill()
		return nil, fmt.Errorf("an empty root: %w", err)
	}
	return s, nil
}

// execStub executes the stub in a mount namespace of its own. Go forks with CLONE_VFORK and CLONE_VM, which costs the
// same however large this process is.
func (e *Engine) execStub() (_ *stub, err error) {
	s := &stub{engine: e, pidfd: -1}
	var theirs int
	if s.conn, theirs, err = pair(); err != nil {
		return nil, err
	}
	defer unix.Close(theirs)
	null, err := e.reopen(int(e.stdin.Fd()), unix.O_RDWR)
	if err != nil {
		s.conn.close()
		return nil, fmt.Errorf("%s: %w", os.DevNull, err)
	}
	defer unix.Close(null)
	attr := &syscall.ProcAttr{Env: []string{}, Dir: "/", Files: []uintptr{uintptr(null), uintptr(null), uintptr(null), uintptr(theirs)},
		Sys: &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS, PidFD: &s.pidfd}}
	image := "/proc/self/fd/" + strconv.Itoa(int(e.image.Fd()))
	s.child, err = e.reaper.Fork(func() (int, error) { return syscall.ForkExec(image, []string{"cri-stub"}, attr) })
	if err != nil {
		s.conn.close()
		return nil, fmt.Errorf("fork: %w", err)
	}
	return s, nil
}

// newEmpty makes an empty, read-only file system.
func newEmpty() (int, error) {
	const attrs = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC
	return newFS("tmpfs", []option{{"mode", "555"}, {"nr_inodes", "1"}}, attrs)
}
