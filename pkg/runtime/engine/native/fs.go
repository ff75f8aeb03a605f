package native

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// option is one option of a file system: a flag when the value is empty.
type option struct{ key, value string }

// newFS makes a file system and returns a detached mount of it with the MOUNT_ATTR_* attrs.
func newFS(typ string, opts []option, attrs uint64, fds ...fdOption) (int, error) {
	fs, err := unix.Fsopen(typ, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("file system %s: %w", typ, classify(err))
	}
	defer unix.Close(fs)
	for _, o := range fds {
		if err := unix.FsconfigSetFd(fs, o.key, o.fd); err != nil {
			return -1, fmt.Errorf("%s option %s: %w", typ, o.key, err)
		}
	}
	for _, o := range opts {
		if o.value == "" {
			err = unix.FsconfigSetFlag(fs, o.key)
		} else {
			err = unix.FsconfigSetString(fs, o.key, o.value)
		}
		if err != nil {
			return -1, fmt.Errorf("%s option %s=%s: %w%s", typ, o.key, o.value, classify(err), fsMessage(fs))
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("make %s: %w%s", typ, classify(err), fsMessage(fs))
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, int(attrs))
	if err != nil {
		return -1, fmt.Errorf("fsmount %s: %w", typ, err)
	}
	return fd, nil
}

// fdOption is a file system option given as a descriptor.
type fdOption struct {
	key string
	fd  int
}

// fsMessage reads what the kernel has logged about a file system context, as " (text)".
func fsMessage(fs int) string {
	buf := make([]byte, 1024)
	n, err := unix.Read(fs, buf)
	if err != nil || n <= 0 {
		return ""
	}
	return " (" + strings.TrimSpace(string(buf[:n])) + ")"
}

func isFS(fd int, magic int64) bool { return fsMagic(fd) == magic }

// fsMagic is the type of the file system that fd is on, as statfs(2) has it; 0 if that can't be told.
func fsMagic(fd int) int64 {
	var st unix.Statfs_t
	if unix.Fstatfs(fd, &st) != nil {
		return 0
	}
	return int64(st.Type)
}

// isDevice reports whether fd is the device node of the given kind (S_IFCHR, S_IFBLK) and number.
func isDevice(fd int, kind uint32, rdev uint64) bool {
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && st.Mode&unix.S_IFMT == kind && uint64(st.Rdev) == rdev
}

func isDir(fd int) (bool, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return false, err
	}
	return st.Mode&unix.S_IFMT == unix.S_IFDIR, nil
}

// openAt opens a path strictly below dir: no links, no way up, no other mount.
func openAt(dir *os.File, path string, flags int) (*os.File, error) {
	fd, err := unix.Openat2(int(dir.Fd()), path, &unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV})
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return os.NewFile(uintptr(fd), path), nil
}

func readAt(dir *os.File, path string) ([]byte, error) {
	f, err := openAt(dir, path, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, 1<<20))
}

// writeAt writes to a file of proc, which takes the whole value at once.
func writeAt(dir *os.File, path, value string) error {
	f, err := openAt(dir, path, unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(value)
	return err
}

// reopen opens the file behind an O_PATH descriptor with other flags, through the engine's own procfs.
func (e *Engine) reopen(fd, flags int) (int, error) {
	return unix.Openat(int(e.proc.Fd()), "self/fd/"+strconv.Itoa(fd), flags|unix.O_CLOEXEC, 0)
}

// closeFD closes fd unless it is -1.
func closeFD(fd int) {
	if fd >= 0 {
		unix.Close(fd)
	}
}
