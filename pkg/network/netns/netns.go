package netns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/smallfile"
	"github.com/seed-9a14075a/cri-server/pkg/faultpoint"
)

// pinned holds the paths that this process pinned and has not removed, each with a *pinning: garbage collection must not
// take a namespace whose pod is just being made.
var pinned sync.Map

// pinning is what is known of a namespace beside its path.
type pinning struct {
	made bool // by Create
	// socket is a route netlink socket in it that waits to be taken, or -1.
	socket atomic.Int64
}

func newPinning() *pinning {
	p := &pinning{}
	p.socket.Store(-1)
	return p
}

func forget(path string) {
	DropSocket(path)
	pinned.Delete(path)
}

// TakeSocket returns the route netlink socket that Create opened in the namespace at path, once: whoever configures its links
// need not enter it. The caller closes it. -1: there is none.
func TakeSocket(path string) int {
	if p, ok := pinned.Load(path); ok {
		return int(p.(*pinning).socket.Swap(-1))
	}
	return -1
}

// DropSocket closes the socket that TakeSocket would return: nobody is going to take it, and it would stay as long as the pod.
func DropSocket(path string) {
	if fd := TakeSocket(path); fd >= 0 {
		_ = unix.Close(fd)
	}
}

// Pinned reports whether this process made the pin at path and has not removed it.
func Pinned(path string) bool {
	_, ok := pinned.Load(path)
	return ok
}

// Prepared reports whether Create has made the namespace at path, and so Prepare has been called in it.
func Prepared(path string) bool {
	p, ok := pinned.Load(path)
	return ok && p.(*pinning).made
}

// Create makes a new network namespace with lo up, pins it at dir/name and returns that path. New links in it don't
// wait for duplicate address detection. errdefs.ErrAlreadyExists when a namespace is pinned there.
func Create(dir, name string) (string, error) { return create(dir, name, build) }

// create pins what get returns, and closes its namespace's descriptor.
func create(dir, name string, get func() (nameless, error)) (string, error) {
	made := newPinning()
	made.made = true
	path, err := pin(dir, name, made, func(path string) error {
		n, err := get()
		if err != nil {
			return err
		}
		defer unix.Close(n.ns)
		made.socket.Store(int64(n.socket))
		return bind(fmt.Sprintf("/proc/self/fd/%d", n.ns), path)
	})
	if err != nil {
		if fd := made.socket.Swap(-1); fd >= 0 {
			_ = unix.Close(int(fd))
		}
		return "", err
	}
	return path, nil
}

// nameless is a network namespace that is nowhere pinned: it ends with its descriptors, and so with the process that has them.
type nameless struct {
	ns     int // of the namespace
	socket int // route netlink, in it
}

func (n nameless) close() {
	_ = unix.Close(n.socket)
	_ = unix.Close(n.ns)
}

// build makes a namespace in which Prepare was called.
func build() (n nameless, _ error) {
	err := onThread(func() error {
		// unshare(2): for this thread only; onThread switches it back.
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			if errors.Is(err, unix.ENOSPC) {
				return fmt.Errorf("unshare: the limit of network namespaces is reached (sysctl user.max_net_namespaces): %w", err)
			}
			return fmt.Errorf("unshare: %w", err)
		}
		var err error
		if n.socket, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE); err != nil {
			return fmt.Errorf("netlink: %w", err)
		}
		if err = prepare(n.socket); err == nil {
			n.ns, err = namespaceOf(n.socket)
		}
		if err != nil {
			_ = unix.Close(n.socket)
		}
		return err
	})
	return n, err
}

// namespaceOf opens the network namespace of a socket, which is the calling thread's too.
func namespaceOf(socket int) (int, error) {
	const siocgskns = 0x894c // SIOCGSKNS, Linux 4.10
	if fd, err := unix.IoctlRetInt(socket, siocgskns); err == nil {
		return fd, nil
	}
	fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0) // Linux 3.17
	if err != nil {
		return -1, fmt.Errorf("open new network namespace: %w", err)
	}
	return fd, nil
}

// PinFD pins the network namespace that fd refers to at dir/name. The caller keeps fd.
func PinFD(dir, name string, fd int) (string, error) {
	if err := checkFD(fd); err != nil {
		return "", err
	}
	return pin(dir, name, newPinning(), func(path string) error { return bind(fmt.Sprintf("/proc/self/fd/%d", fd), path) })
}

// PinPID pins the network namespace of a process, e.g. one that was made in a user namespace. The caller must know
// that pid can't be reused meanwhile (it is the parent, or holds a pidfd).
func PinPID(dir, name string, pid int) (string, error) {
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/net", pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("open network namespace of process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	return PinFD(dir, name, fd)
}

// Remove unpins the namespace at path. It lives on while processes are in it. Idempotent. It refuses a path that is
// neither a namespace nor an empty file.
func Remove(path string) error {
	for {
		// umount(2): EINVAL when path is no mount point. A pin that was mounted twice is unmounted twice.
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) {
			break
		}
		if errors.Is(err, unix.ENOENT) {
			forget(path)
			return nil
		}
		if err != nil {
			return fmt.Errorf("unpin %s: %w", path, err)
		}
	}
	if err := faultpoint.Hit("netns.unpin.unmounted"); err != nil {
		return err
	}
	st, err := os.Lstat(path)
	if err == nil {
		if !st.Mode().IsRegular() || st.Size() != 0 {
			return fmt.Errorf("unpin %s: not a pinned namespace: %w", path, errdefs.ErrFailedPrecondition)
		}
		err = os.Remove(path)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("unpin: %w", err)
	}
	forget(path)
	return nil
}

// Check is nil when path is a network namespace; errdefs.ErrNotFound when there is nothing, or the empty file of a pin
// that was cut short, and errdefs.ErrFailedPrecondition when it is something else.
func Check(path string) error {
	fd, err := open(path)
	if errdefs.IsFailedPrecondition(err) {
		if st, e := os.Lstat(path); e == nil && st.Mode().IsRegular() && st.Size() == 0 {
			return fmt.Errorf("network namespace %s was never pinned: %w", path, errdefs.ErrNotFound)
		}
	}
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// List returns the names in dir that start with prefix, whether a namespace is mounted on them or not (a crash
// between the two steps of a pin leaves an empty file). A missing dir is empty.
func List(dir, prefix string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list namespaces: %w", err)
	}
	var names []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) && !e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// pin mounts a namespace at dir/name, and keeps p of it.
func pin(dir, name string, p *pinning, mount func(path string) error) (_ string, err error) {
	if name == "" || name != filepath.Base(name) || name[0] == '.' {
		return "", fmt.Errorf("network namespace name %q: %w", name, errdefs.ErrInvalidArgument)
	}
	if err := share(dir); err != nil {
		return "", err
	}
	path := filepath.Join(dir, name)
	err = smallfile.Create(path, nil, 0o444)
	if errors.Is(err, os.ErrExist) {
		if Check(path) == nil {
			return "", fmt.Errorf("network namespace %s: %w", path, errdefs.ErrAlreadyExists)
		}
		// What a crash left between making the file and mounting on it.
		if err := Remove(path); err != nil {
			return "", err
		}
		err = smallfile.Create(path, nil, 0o444)
	}
	if err != nil {
		return "", fmt.Errorf("pin network namespace: %w", err)
	}
	pinned.Store(path, p)
	if err = faultpoint.Hit("netns.pin.file"); err == nil {
		err = mount(path)
	}
	if err == nil {
		err = faultpoint.Hit("netns.pin.mounted")
	}
	if err != nil {
		return "", errors.Join(fmt.Errorf("pin network namespace %s: %w", path, err), Remove(path))
	}
	return path, nil
}

func bind(source, target string) error {
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind mount: %w", err)
	}
	return nil
}

// share makes dir a shared mount of its own, as ip-netns(8) does: mount(2) answers EINVAL while dir is no mount point.
func share(dir string) error {
	if _, ok := shared.Load(dir); ok && unix.Access(dir, unix.W_OK) == nil {
		return nil
	}
	shareMu.Lock()
	defer shareMu.Unlock()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("network namespace directory: %w", err)
	}
	f, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("network namespace directory: %w", err)
	}
	defer f.Close()
	// The lock that ip(8) takes too, so that dir is not mounted on itself twice. Whoever holds it is doing just that.
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil && !errors.Is(err, unix.EWOULDBLOCK) {
		return fmt.Errorf("lock %s: %w", dir, err)
	}
	err = unix.Mount("", dir, "", unix.MS_SHARED|unix.MS_REC, "")
	if errors.Is(err, unix.EINVAL) {
		if err := unix.Mount(dir, dir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("bind mount %s on itself: %w", dir, err)
		}
		err = unix.Mount("", dir, "", unix.MS_SHARED|unix.MS_REC, "")
	}
	if err != nil {
		return fmt.Errorf("make %s a shared mount: %w", dir, err)
	}
	shared.Store(dir, true)
	return nil
}

// shared holds the directories that share is done with; shareMu serialises making them so.
var (
	shared  sync.Map
	shareMu sync.Mutex
)
