package netns

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// sysctlUses is how many names are looked up in one procfs before the next is made, which takes about 30 µs.
const sysctlUses = 64

// sysctls is a procfs of our own, not mounted anywhere. What is below sys/net of a procfs differs between network
// namespaces, and the kernel remembers each namespace's entries side by side under the same names: a lookup goes through
// those of all namespaces in which somebody has looked. In /proc, with 500 pods, that costs each of our accesses 0.1 ms and
// more, and those of everybody else; in an instance that is thrown away after a few uses it costs nothing.
var sysctls struct {
	sync.Mutex
	dir  int // 0: none yet; unix.AT_FDCWD where none can be made
	uses int
}

// openSysctl opens what /proc/sys/net/name is in the calling thread's network namespace. The caller closes it.
func openSysctl(name string, flags int) (int, error) {
	s := &sysctls
	s.Lock()
	defer s.Unlock()
	if s.uses++; s.dir == 0 || s.uses > sysctlUses {
		fresh, err := freshProc()
		if s.dir > 0 {
			unix.Close(s.dir)
		}
		if s.dir, s.uses = fresh, 0; err != nil { // a nested container that may not, or no descriptor is left: for a while
			s.dir = unix.AT_FDCWD
		}
	}
	path := "sys/net/" + name
	fd, err := -1, error(unix.EINVAL)
	if s.dir > 0 {
		fd, err = unix.Openat(s.dir, path, flags|unix.O_CLOEXEC, 0)
	}
	if err != nil && !slices.Contains(answersOfProc, err) { // what the instance itself is bad for, /proc may be good for
		fd, err = unix.Open("/proc/"+path, flags|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: "/proc/sys/net/" + name, Err: err}
	}
	return fd, nil
}

// answersOfProc are the errors that are about a sysctl and not about the procfs it was looked up in: it is not there, or may
// not be opened in that way.
var answersOfProc = []error{unix.ENOENT, unix.EACCES, unix.EPERM, unix.EROFS}

// freshProc is newProc, but in tests.
var freshProc = newProc

// newProc makes a procfs, Linux 5.8: before it, it is another mount of the pid namespace's only one, which does no harm.
func newProc() (int, error) {
	fs, err := unix.Fsopen("proc", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs)
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, err
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
}

// SetSysctl writes the value of /proc/sys/net/name in the calling thread's network namespace, unless it is so already:
// /proc/sys is read-only in some containers, which matters only where a change is needed.
func SetSysctl(name, value string) error {
	fd, err := openSysctl(name, unix.O_RDWR)
	if err != nil {
		if r, rerr := openSysctl(name, unix.O_RDONLY); rerr == nil {
			defer unix.Close(r)
			if reads(r, value) {
				return nil
			}
		}
		return fmt.Errorf("sysctl: %w", err)
	}
	defer unix.Close(fd)
	if reads(fd, value) {
		return nil
	}
	if _, err := unix.Pwrite(fd, []byte(value), 0); err != nil { // elsewhere it would be ignored: sysctl_writes_strict
		return fmt.Errorf("sysctl: write %s to /proc/sys/net/%s: %w", value, name, err)
	}
	return nil
}

func reads(fd int, value string) bool {
	b := make([]byte, len(value)+2)
	n, err := unix.Pread(fd, b, 0)
	return err == nil && strings.TrimSpace(string(b[:n])) == value
}
