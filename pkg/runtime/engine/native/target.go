package native

import (
	"errors"
	"fmt"
	"path"

	"golang.org/x/sys/unix"
)

// inRoot opens p as a process chrooted to root would, and never anything outside of root (openat2(2)).
func inRoot(root int, p string, flags uint64, resolve uint64) (int, error) {
	how := &unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS | resolve}
	for try := 0; ; try++ {
		fd, err := unix.Openat2(root, p, how)
		// EAGAIN: something was renamed on the way, so that the kernel can't vouch for a "..".
		if (errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR)) && try < 128 {
			continue
		}
		return fd, err
	}
}

// maxLinks is how many dangling links are followed while a path is made; path_resolution(7) has the same limit.
const maxLinks = 40

// ensure opens p below root with O_PATH, and makes what is missing of it: directories, and at the end a directory or an
// empty file. A dangling link is followed inside of root, as images have them (/etc/resolv.conf).
func ensure(root int, p string, dir bool) (int, error) {
	return ensureLinks(root, p, dir, maxLinks)
}

// ensurePlain is ensure for a path that must not lead over any link: ELOOP where it does.
func ensurePlain(root int, p string, dir bool) (int, error) {
	fd, err := inRoot(root, p, unix.O_PATH, unix.RESOLVE_NO_SYMLINKS)
	if !errors.Is(err, unix.ENOENT) {
		return fd, err
	}
	if fd, err = ensure(root, p, dir); err != nil {
		return -1, err
	}
	unix.Close(fd)
	return inRoot(root, p, unix.O_PATH, unix.RESOLVE_NO_SYMLINKS)
}

func ensureLinks(root int, p string, dir bool, links int) (int, error) {
	fd, err := inRoot(root, p, unix.O_PATH, 0)
	if err == nil || !errors.Is(err, unix.ENOENT) {
		return fd, err
	}
	parent, name := path.Dir(path.Clean("/"+p)), path.Base(path.Clean("/"+p))
	d, err := ensureLinks(root, parent, true, links)
	if err != nil {
		return -1, err
	}
	defer unix.Close(d)
	err = mk(d, name, dir)
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return -1, fmt.Errorf("make %s: %w", name, err)
	}
	if err != nil {
		if target, ok := readlink(d, name); ok {
			if links == 0 {
				return -1, unix.ELOOP
			}
			if !path.IsAbs(target) {
				target = parent + "/" + target
			}
			return ensureLinks(root, target, dir, links-1)
		}
	}
	return openMade(d, name, dir)
}

// mk makes a directory or an empty file.
func mk(d int, name string, dir bool) error {
	if dir {
		return unix.Mkdirat(d, name, 0o755)
	}
	return unix.Mknodat(d, name, unix.S_IFREG|0o644, 0)
}

// create makes name in the directory d, or takes what somebody else has just made there, if it is of the same kind.
func create(d int, name string, dir bool) (int, error) {
	if err := mk(d, name, dir); err != nil && !errors.Is(err, unix.EEXIST) {
		return -1, fmt.Errorf("make %s: %w", name, err)
	}
	return openMade(d, name, dir)
}

func openMade(d int, name string, dir bool) (int, error) {
	flags := unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC
	if dir {
		flags |= unix.O_DIRECTORY
	}
	return unix.Openat(d, name, flags, 0)
}

func readlink(d int, name string) (string, bool) {
	b := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(d, name, b)
	return string(b[:max(n, 0)]), err == nil
}

// attach moves the detached mount onto the object behind target.
func attach(mount, target int) error {
	const flags = unix.MOVE_MOUNT_F_EMPTY_PATH | unix.MOVE_MOUNT_T_EMPTY_PATH
	if err := unix.MoveMount(mount, "", target, "", flags); err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	return nil
}

// cloneMount makes a detached clone of the mount at fd, or of the file or directory fd in its mount.
func cloneMount(fd int, recursive bool) (int, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC | unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	c, err := unix.OpenTree(fd, "", flags)
	if err != nil {
		return -1, fmt.Errorf("open_tree: %w", err)
	}
	return c, nil
}
