package unpack

import (
	"errors"
	"os"
	"slices"
	"strconv"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// maxHeld bounds the directories held open while walking a tree: processes in containers make trees far deeper than
// there are descriptors.
const maxHeld = 128

// UsageAt counts allocated bytes and inodes of the open directory and all below it. Hard links count once. What
// disappears meanwhile is not counted, nor what lies deeper than 128 directories.
func UsageAt(dir int) (bytes, inodes int64, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(dir, &st); err != nil {
		return 0, 0, err
	}
	u := usage{bytes: st.Blocks * 512, inodes: 1, seen: map[inode]struct{}{}}
	err = u.walk(dir, 0)
	return u.bytes, u.inodes, err
}

type inode struct{ dev, ino uint64 }

type usage struct {
	bytes, inodes int64
	seen          map[inode]struct{}
}

func (u *usage) walk(fd, depth int) error {
	names, err := ReadNames(fd)
	if err != nil {
		return err
	}
	for _, name := range names {
		var st unix.Stat_t
		err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return err
		}
		isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
		if st.Nlink > 1 && !isDir {
			id := inode{uint64(st.Dev), st.Ino}
			if _, ok := u.seen[id]; ok {
				continue
			}
			u.seen[id] = struct{}{}
		}
		u.bytes += st.Blocks * 512
		u.inodes++
		if !isDir || depth >= maxHeld {
			continue
		}
		sub, err := unix.Openat(fd, name, openDir, 0)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
			continue
		}
		if err != nil {
			return err
		}
		err = u.walk(sub, depth+1)
		_ = unix.Close(sub)
		if err != nil {
			return err
		}
	}
	return nil
}

// ReadNames returns the sorted names in an open directory, whose descriptor stays the caller's.
func ReadNames(fd int) ([]string, error) {
	dup, err := unix.Openat(fd, ".", openDir, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(dup), "directory")
	defer f.Close()
	names, err := f.Readdirnames(-1)
	slices.Sort(names)
	return names, err
}

// RemoveAllAt removes base in the open directory dir with all below it, following no symbolic link. Nothing else may
// write into dir itself: what lies very deep is moved up there first.
func RemoveAllAt(dir int, base string) error {
	r := remover{top: dir}
	err := r.remove(dir, base, 0)
	for len(r.moved) > 0 && err == nil {
		next := r.moved[len(r.moved)-1]
		r.moved = r.moved[:len(r.moved)-1]
		err = r.remove(dir, next, 0)
	}
	return err
}

type remover struct {
	top   int
	moved []string
}

// deep numbers the directories moved up, over all removals of this process.
var deep atomic.Uint64

func (r *remover) remove(dir int, base string, depth int) error {
	err := unix.Unlinkat(dir, base, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if depth > maxHeld {
		name := ".deep-" + strconv.Itoa(os.Getpid()) + "-" + strconv.FormatUint(deep.Add(1), 10)
		if err := unix.Renameat(dir, base, r.top, name); err != nil {
			return err
		}
		r.moved = append(r.moved, name)
		return nil
	}
	fd, operr := unix.Openat(dir, base, openDir, 0)
	if operr != nil {
		return err
	}
	names, err := ReadNames(fd)
	for _, name := range names {
		if rerr := r.remove(fd, name, depth+1); rerr != nil && err == nil {
			err = rerr
		}
	}
	_ = unix.Close(fd)
	if err != nil {
		return err
	}
	return unix.Unlinkat(dir, base, unix.AT_REMOVEDIR)
}
