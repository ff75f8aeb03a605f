package native

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// maxDepth bounds how deep a copied tree may be.
const maxDepth = 256

// copyTree copies what is in the directory from (O_PATH) into the directory to: tmpcopyup. It follows no links and
// stays on from's mount by working with descriptors of directories only.
func copyTree(from, to int) error {
	return copyDir(from, to, 0)
}

func copyDir(from, to, depth int) error {
	if depth > maxDepth {
		return invalid("directories deeper than %d", maxDepth)
	}
	fd, err := unix.Openat(from, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	dir := os.NewFile(uintptr(fd), "dir")
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := copyEntry(fd, to, name, depth); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if depth == 0 { // the mount point's own mode and owner
		if err := unix.Fchownat(to, "", int(st.Uid), int(st.Gid), unix.AT_EMPTY_PATH); err != nil {
			return err
		}
		return unix.Fchmodat(to, ".", st.Mode&0o7777, 0)
	}
	return nil
}

func copyEntry(from, to int, name string, depth int) error {
	var st unix.Stat_t
	if err := unix.Fstatat(from, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	mode := st.Mode & 0o7777
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		if err := unix.Mkdirat(to, name, mode); err != nil {
			return err
		}
		if err := copySubdir(from, to, name, depth); err != nil {
			return err
		}
	case unix.S_IFLNK:
		target, ok := readlink(from, name)
		if !ok {
			return unix.EINVAL
		}
		if err := unix.Symlinkat(target, to, name); err != nil {
			return err
		}
	case unix.S_IFREG:
		if err := copyFile(from, to, name); err != nil {
			return err
		}
	case unix.S_IFSOCK:
		return nil
	default:
		if err := unix.Mknodat(to, name, st.Mode, int(st.Rdev)); err != nil {
			return err
		}
	}
	if err := unix.Fchownat(to, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return nil
	}
	if err := unix.Fchmodat(to, name, mode, 0); err != nil { // after chown, which clears setuid
		return err
	}
	times := []unix.Timespec{st.Atim, st.Mtim}
	return unix.UtimesNanoAt(to, name, times, unix.AT_SYMLINK_NOFOLLOW)
}

func copySubdir(from, to int, name string, depth int) error {
	const flags = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	f, err := unix.Openat(from, name, flags, 0)
	if err != nil {
		return err
	}
	defer unix.Close(f)
	t, err := unix.Openat(to, name, flags, 0)
	if err != nil {
		return err
	}
	defer unix.Close(t)
	return copyDir(f, t, depth+1)
}

func copyFile(from, to int, name string) error {
	f, err := unix.Openat(from, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	src := os.NewFile(uintptr(f), name)
	defer src.Close()
	t, err := unix.Openat(to, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	dst := os.NewFile(uintptr(t), name)
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}
