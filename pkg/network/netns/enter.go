package netns

import (
	"errors"
	"fmt"
	"runtime"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Do runs f on a thread inside the network namespace at path. f must not start goroutines that rely on the namespace
// nor run programs. errdefs.ErrNotFound when nothing is at path.
func Do(path string, f func() error) error {
	fd, err := open(path)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return DoFD(fd, f)
}

// DoFD is Do for an open namespace.
func DoFD(fd int, f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return f()
	})
}

// Open opens the network namespace at path, and returns its descriptor. The caller closes it. Errors as Check.
func Open(path string) (int, error) { return open(path) }

// onThread runs f on a locked thread whose network namespace f may change, and puts the thread back. A thread that
// can't be put back stays locked, so that the runtime ends it with the goroutine (runtime.LockOSThread).
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		home, err := home()
		if err != nil {
			done <- err
			return
		}
		runtime.LockOSThread()
		err = f()
		if unix.Setns(home, unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

// own is the process's own network namespace, once it was needed.
var own struct {
	sync.Mutex
	fd int // 0: not yet
}

// home is the process's own network namespace, which all its threads are in but those inside onThread: the runtime makes no
// thread from one that is locked. It stays open.
func home() (int, error) {
	own.Lock()
	defer own.Unlock()
	if own.fd > 0 {
		return own.fd, nil
	}
	// Not the caller's thread's: it may be in another.
	fd, err := unix.Open("/proc/self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil { // of too many files, perhaps, and not the next time
		return -1, fmt.Errorf("open own network namespace: %w", err)
	}
	own.fd = fd
	return fd, nil
}

// Prepare readies the calling thread's namespace: lo up, and no duplicate address detection on links to come, whose
// addresses are ours to give.
func Prepare() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("lo up: %w", err)
	}
	defer unix.Close(s)
	return prepare(s)
}

// prepare is Prepare with a socket of any family in that namespace.
func prepare(socket int) error {
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("lo up: %w", err)
	}
	ifr.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(socket, unix.SIOCSIFFLAGS, ifr); err != nil { // netdevice(7)
		return fmt.Errorf("lo up: %w", err)
	}
	// Missing where IPv6 is disabled; read-only where /proc/sys is. Both mean that nobody relies on it.
	_ = SetSysctl("ipv6/conf/default/accept_dad", "0")
	return nil
}

func open(path string) (int, error) {
	// O_NONBLOCK: a fifo put there must not hold us.
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		if errors.Is(err, unix.ENOENT) {
			return -1, fmt.Errorf("network namespace %s: %w", path, errdefs.ErrNotFound)
		}
		return -1, fmt.Errorf("network namespace %s: %w", path, err)
	}
	if err := checkFD(fd); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("%s: %w", path, err)
	}
	return fd, nil
}

// checkFD tells whether fd is a network namespace: NS_GET_NSTYPE, ioctl_ns(2), Linux 4.11.
func checkFD(fd int) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	if st.Type != unix.NSFS_MAGIC {
		return fmt.Errorf("not a network namespace: %w", errdefs.ErrFailedPrecondition)
	}
	kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	if err != nil || kind != unix.CLONE_NEWNET {
		return fmt.Errorf("a namespace, but not a network namespace: %w", errdefs.ErrFailedPrecondition)
	}
	return nil
}
