package unpack

import (
	"fmt"
	"os"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// finish sets the directories' times, which writing into them changed, and counts.
func (a *applier) finish() (Result, error) {
	if _, ok := a.dirs["."]; !ok {
		a.dirs["."] = dirTimes{}
	}
	for path, d := range a.dirs {
		fd, closeIt, err := a.openDirOnce(path)
		if err != nil {
			return Result{}, fmt.Errorf("directory %q: %w", path, err)
		}
		err = a.finishDir(fd, d)
		if closeIt {
			_ = unix.Close(fd)
		}
		if err != nil {
			return Result{}, fmt.Errorf("directory %q: %w", path, err)
		}
	}
	a.root.forget()
	if a.recount {
		var err error
		if a.bytes, a.inodes, err = UsageAt(a.root.fd); err != nil {
			return Result{}, fmt.Errorf("count: %w", err)
		}
	}
	m := Marks{Form: a.opt.Marks, Whiteouts: paths(a.whiteouts), Opaques: paths(a.opaques), Implied: paths(a.implied), Links: a.links}
	return Result{Bytes: a.bytes, Inodes: a.inodes, Marks: m, SkippedDevices: a.skipped}, nil
}

func (a *applier) openDirOnce(path string) (fd int, closeIt bool, err error) {
	if path == "." {
		return a.root.fd, false, nil
	}
	fd, err = a.root.openat2(path, openDir)
	return fd, true, err
}

func (a *applier) finishDir(fd int, d dirTimes) error {
	ts := d.times // an implied directory gets the epoch: the same layer unpacks to the same tree
	if err := futimens(fd, ts); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	a.bytes += st.Blocks * 512
	a.inodes++
	return nil
}

// UsageAt counts allocated bytes and inodes of the open directory and all below it. Hard links count once.
func UsageAt(dir int) (bytes, inodes int64, err error) {
	type inode struct{ dev, ino uint64 }
	seen := map[inode]struct{}{}
	var walk func(fd int) error
	walk = func(fd int) error {
		names, err := ReadNames(fd)
		if err != nil {
			return err
		}
		for _, name := range names {
			var st unix.Stat_t
			if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				if err == unix.ENOENT { // a live writable layer
					continue
				}
				return err
			}
			if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
				id := inode{uint64(st.Dev), st.Ino}
				if _, ok := seen[id]; ok {
					continue
				}
				seen[id] = struct{}{}
			}
			bytes += st.Blocks * 512
			inodes++
			if st.Mode&unix.S_IFMT != unix.S_IFDIR {
				continue
			}
			sub, err := unix.Openat(fd, name, openDir, 0)
			if err == unix.ENOENT || err == unix.ENOTDIR || err == unix.ELOOP {
				continue
			}
			if err != nil {
				return err
			}
			err = walk(sub)
			_ = unix.Close(sub)
			if err != nil {
				return err
			}
		}
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(dir, &st); err != nil {
		return 0, 0, err
	}
	bytes, inodes = st.Blocks*512, 1
	return bytes, inodes, walk(dir)
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

// RemoveAllAt removes base in the open directory dir with all below it, following no symbolic link.
func RemoveAllAt(dir int, base string) error {
	err := unix.Unlinkat(dir, base, 0)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	fd, operr := unix.Openat(dir, base, openDir, 0)
	if operr != nil {
		return err
	}
	names, err := ReadNames(fd)
	for _, name := range names {
		if rerr := RemoveAllAt(fd, name); rerr != nil && err == nil {
			err = rerr
		}
	}
	_ = unix.Close(fd)
	if err != nil {
		return err
	}
	return unix.Unlinkat(dir, base, unix.AT_REMOVEDIR)
}

func ptr(ts *[2]unix.Timespec) unsafe.Pointer { return unsafe.Pointer(ts) }
