package reaper

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// settleTime is how long the new parent of an orphan may take to reap it, where only that makes its status known.
const settleTime = 2 * time.Second

// Attend registers a process that a predecessor of this one has forked, by its pid and pidfd; it duplicates pidfd.
// After an execve(2) it is still our child. A process whose parent has died is another's child; then the kernel tells
// through the pidfd how it ended: always since Linux 6.15, before that only if it is still a zombie when this process
// looks. Else the status is Unknown.
func (r *Reaper) Attend(pid, pidfd int) (*Child, error) {
	// waitid(2): ECHILD for a process that is no child of ours. P_PIDFD came with Linux 5.4.
	err := unix.Waitid(unix.P_PIDFD, pidfd, nil, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT|unix.WALL, nil)
	if err == nil {
		return r.Adopt(pid), nil
	}
	if err != unix.ECHILD {
		return nil, fmt.Errorf("process %d: waitid: %w", pid, err)
	}
	if EndsIn(pidfd, 0) {
		if c := r.reaped(pid); c != nil {
			return c, nil
		}
	}
	fd, err := unix.FcntlInt(uintptr(pidfd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	f := &foreign{child: &Child{pid: pid, done: make(chan struct{})}, fd: fd}
	if err := r.far.add(f); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	return f.child, nil
}

// EndsIn tells whether a process has ended, reaped or not, or does so within grace; see pidfd_open(2). The pidfd must stay
// open meanwhile.
func EndsIn(pidfd int, grace time.Duration) bool {
	fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
	for end := time.Now().Add(grace); ; {
		n, err := unix.Poll(fds, max(0, int(time.Until(end).Milliseconds())))
		if err != unix.EINTR || time.Now().After(end) { // Go's runtime signals its threads all the time; poll(2) doesn't restart
			return err == nil && n == 1
		}
	}
}

// Ended returns the child that a process was which has ended with an exit code before.
func Ended(pid, code int) *Child {
	c := &Child{pid: pid, done: make(chan struct{})}
	c.finish(Status{WaitStatus: unix.WaitStatus(code << 8)})
	return c
}

// reaped returns the child for a pid whose exit is known here, else nil.
func (r *Reaper) reaped(pid int) *Child {
	r.mu.Lock()
	_, ok := r.unclaimed[pid]
	r.mu.Unlock()
	if !ok {
		return nil
	}
	return r.Adopt(pid)
}

// foreign is a process that is no child of ours.
type foreign struct {
	child    *Child
	fd       int
	deadline time.Time // zero while it lives
}

// watcher waits for the ends of foreign processes. Its goroutine lives while there are any.
type watcher struct {
	mu   sync.Mutex
	ep   int // valid while list is not nil
	list map[int]*foreign
	wake int // eventfd
	work sync.WaitGroup
}

func (w *watcher) add(f *foreign) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.list == nil {
		if err := w.open(); err != nil {
			return err
		}
	}
	// EPOLLIN: it has ended; EPOLLHUP (Linux 6.9): it was reaped. pidfd_open(2).
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(f.fd)}
	if err := unix.EpollCtl(w.ep, unix.EPOLL_CTL_ADD, f.fd, &ev); err != nil {
		return fmt.Errorf("epoll: %w", err)
	}
	w.list[f.fd] = f
	return nil
}

func (w *watcher) open() (err error) {
	if w.ep, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return fmt.Errorf("epoll: %w", err)
	}
	if w.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err == nil {
		ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(w.wake)}
		err = unix.EpollCtl(w.ep, unix.EPOLL_CTL_ADD, w.wake, &ev)
	}
	if err != nil {
		unix.Close(w.ep)
		return fmt.Errorf("eventfd: %w", err)
	}
	w.list = map[int]*foreign{}
	w.work.Add(1)
	go w.run()
	return nil
}

// close gives up watching.
func (w *watcher) close() {
	w.mu.Lock()
	if w.list != nil {
		_, _ = unix.Write(w.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	}
	w.mu.Unlock()
	w.work.Wait()
}

func (w *watcher) run() {
	defer w.work.Done()
	events := make([]unix.EpollEvent, 32)
	timeout := -1
	for {
		n, err := unix.EpollWait(w.ep, events, timeout)
		if err != nil && err != unix.EINTR {
			return
		}
		w.mu.Lock()
		stop := false
		for _, ev := range events[:max(n, 0)] {
			stop = stop || ev.Fd == int32(w.wake)
			if f := w.list[int(ev.Fd)]; f != nil {
				w.look(f, ev.Events&unix.EPOLLHUP != 0)
			}
		}
		timeout = -1
		for _, f := range w.list {
			if f.deadline.IsZero() {
				continue
			}
			if !time.Now().Before(f.deadline) {
				w.look(f, true)
				continue
			}
			timeout = 50
		}
		if stop || len(w.list) == 0 {
			for fd := range w.list {
				unix.Close(fd)
			}
			unix.Close(w.ep)
			unix.Close(w.wake)
			w.list = nil
			w.mu.Unlock()
			return
		}
		w.mu.Unlock()
	}
}

// look settles a process that has ended, if its status can be known, or last says that it won't be known better.
func (w *watcher) look(f *foreign, last bool) {
	s, ok := exitStatus(f.child.pid, f.fd)
	if !ok && !last {
		if f.deadline.IsZero() {
			f.deadline = time.Now().Add(settleTime)
			ev := unix.EpollEvent{Fd: int32(f.fd)} // from now on only the hang-up
			_ = unix.EpollCtl(w.ep, unix.EPOLL_CTL_MOD, f.fd, &ev)
		}
		return
	}
	if !ok {
		s = Status{Unknown: true}
	}
	delete(w.list, f.fd)
	_ = unix.EpollCtl(w.ep, unix.EPOLL_CTL_DEL, f.fd, nil)
	unix.Close(f.fd)
	f.child.finish(s)
}

// pidfdInfo is struct pidfd_info of Linux 6.13; the first 64 bytes are the first version.
type pidfdInfo struct {
	mask     uint64
	cgroupid uint64
	ids      [11]uint32 // pid, tgid, ppid, and the credentials
	exitCode int32
}

// pidfdGetInfo is PIDFD_GET_INFO for the structure above: _IOWR(0xFF, 11, 64 bytes).
const pidfdGetInfo = 0xc040ff0b

// exitStatus reads how a process that has ended did so: from its pidfd once it was reaped (Linux 6.15), from
// /proc/PID/stat as long as it is a zombie.
func exitStatus(pid, pidfd int) (Status, bool) {
	info := pidfdInfo{mask: unix.PIDFD_INFO_EXIT}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(pidfd), pidfdGetInfo, uintptr(unsafe.Pointer(&info)))
	if errno == 0 && info.mask&unix.PIDFD_INFO_EXIT != 0 {
		return Status{WaitStatus: unix.WaitStatus(info.exitCode)}, true
	}
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil || unix.PidfdSendSignal(pidfd, 0, nil, 0) != nil { // reaped: the file may be another process's
		return Status{}, false
	}
	// proc_pid_stat(5): field 3 is the state, field 52 the status as waitpid(2) gives it; 2 may hold anything.
	s := string(b)
	f := strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
	if len(f) < 50 || f[0] != "Z" {
		return Status{}, false
	}
	n, err := strconv.Atoi(f[49])
	return Status{WaitStatus: unix.WaitStatus(n)}, err == nil
}
