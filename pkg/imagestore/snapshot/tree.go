package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/imagestore/unpack"
)

type inode struct{ dev, ino uint64 }

// copier copies one layer's tree over what the layers below it left.
type copier struct {
	ctx                context.Context
	root               int
	implied, whiteouts map[string]bool
	// links are files with several names that were copied already.
	links map[inode]string
}

const openFlags = unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_CLOEXEC

func (c *copier) dir(src, dst int, path string) error {
	names, err := unpack.ReadNames(src)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := c.ctx.Err(); err != nil {
			return context.Cause(c.ctx)
		}
		sub := name
		if path != "." {
			sub = path + "/" + name
		}
		if c.whiteouts[sub] || unpack.IsMark(name) {
			continue
		}
		if err := c.entry(src, dst, name, sub); err != nil {
			return fmt.Errorf("%q: %w", sub, err)
		}
	}
	return nil
}

func (c *copier) entry(src, dst int, name, path string) error {
	var st, old unix.Stat_t
	if err := unix.Fstatat(src, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	err := unix.Fstatat(dst, name, &old, unix.AT_SYMLINK_NOFOLLOW)
	exists := err == nil
	if exists && !(isDir && old.Mode&unix.S_IFMT == unix.S_IFDIR) {
		if err := unpack.RemoveAllAt(dst, name); err != nil {
			return err
		}
		exists = false
	}
	if isDir {
		return c.directory(src, dst, name, path, &st, exists)
	}
	id := inode{uint64(st.Dev), st.Ino}
	if st.Nlink > 1 {
		if first, ok := c.links[id]; ok {
			fd, base, err := openBelow(c.root, first)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			return unix.Linkat(fd, base, dst, name, 0)
		}
		c.links[id] = path
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		return c.file(src, dst, name, &st)
	case unix.S_IFLNK:
		b := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(src, name, b)
		if err != nil {
			return err
		}
		err = unix.Symlinkat(string(b[:n]), dst, name)
		if err != nil {
			return err
		}
	default:
		if err := unix.Mknodat(dst, name, st.Mode, int(st.Rdev)); err != nil {
			return err
		}
	}
	return c.attributesAt(src, dst, name, &st)
}

func (c *copier) directory(src, dst int, name, path string, st *unix.Stat_t, exists bool) error {
	if !exists {
		if err := unix.Mkdirat(dst, name, 0o700); err != nil {
			return err
		}
	}
	from, err := unix.Openat(src, name, openFlags|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(from)
	to, err := unix.Openat(dst, name, openFlags|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(to)
	if err := c.dir(from, to, path); err != nil {
		return err
	}
	if exists && c.implied[path] { // the layer below described it
		return nil
	}
	return c.attributes(from, to, st)
}

func (c *copier) file(src, dst int, name string, st *unix.Stat_t) error {
	return c.fileAs(src, dst, name, name, st)
}

func (c *copier) fileAs(src, dst int, old, name string, st *unix.Stat_t) error {
	in, err := unix.Openat(src, old, openFlags, 0)
	if err != nil {
		return err
	}
	from := os.NewFile(uintptr(in), name)
	defer from.Close()
	out, err := unix.Openat(dst, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	to := os.NewFile(uintptr(out), name)
	defer to.Close()
	if unix.IoctlFileClone(out, in) != nil { // FICLONE, ioctl_ficlonerange(2): btrfs, xfs
		if _, err := io.Copy(to, from); err != nil { // copy_file_range(2)
			return err
		}
	}
	return c.attributes(in, out, st)
}

func (c *copier) attributes(from, to int, st *unix.Stat_t) error {
	if err := unix.Fchown(to, int(st.Uid), int(st.Gid)); err != nil && os.Geteuid() == 0 {
		return err
	}
	if err := unix.Fchmod(to, st.Mode&0o7777); err != nil {
		return err
	}
	if err := copyXattrs("/proc/self/fd/"+strconv.Itoa(from), "/proc/self/fd/"+strconv.Itoa(to), true); err != nil {
		return err
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(to), []unix.Timespec{st.Atim, st.Mtim}, 0)
}

func (c *copier) attributesAt(src, dst int, name string, st *unix.Stat_t) error {
	if err := unix.Fchownat(dst, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil && os.Geteuid() == 0 {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := unix.Fchmodat(dst, name, st.Mode&0o7777, 0); err != nil {
			return err
		}
	}
	from := "/proc/self/fd/" + strconv.Itoa(src) + "/" + name
	to := "/proc/self/fd/" + strconv.Itoa(dst) + "/" + name
	if err := copyXattrs(from, to, false); err != nil {
		return err
	}
	return unix.UtimesNanoAt(dst, name, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}

// copyXattrs copies all but overlayfs's own.
func copyXattrs(from, to string, follow bool) error {
	list, get, put := unix.Llistxattr, unix.Lgetxattr, unix.Lsetxattr
	if follow {
		list, get, put = unix.Listxattr, unix.Getxattr, unix.Setxattr
	}
	names := make([]byte, 64<<10) // XATTR_LIST_MAX
	n, err := list(from, names)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return err
	}
	for name := range strings.SplitSeq(string(names[:n]), "\x00") {
		if name == "" || strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "user.overlay.") || name == "security.selinux" {
			continue
		}
		value := make([]byte, 64<<10) // XATTR_SIZE_MAX
		n, err := get(from, name, value)
		if err != nil {
			return err
		}
		if err := put(to, name, value[:n], 0); err != nil && !errors.Is(err, unix.ENOTSUP) {
			return fmt.Errorf("xattr %s: %w", name, err)
		}
	}
	return nil
}
