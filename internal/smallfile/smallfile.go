// Package smallfile writes small files as a pod's start and end need it: with few system calls, and without a new inode where
// a former one will do.
//
// A file that the os package opens is offered to Go's poller, which takes five system calls and is of no use for files on
// disk. An inode costs a file system more than all else about a file of a few hundred bytes, when it is made and when it
// is freed (ext4 without a journal looks at each inode that was freed in the same group in the last minute, before it takes
// one); Spares spare that.
package smallfile

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Write is os.WriteFile.
func Write(path string, b []byte, mode uint32) error {
	fd, err := open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC, mode)
	if err != nil {
		return err
	}
	return finish(path, fd, b)
}

// Create is Write for a file that must not be there yet; os.ErrExist.
func Create(path string, b []byte, mode uint32) error {
	fd, err := open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL, mode)
	if err != nil {
		return err
	}
	return finish(path, fd, b)
}

// Overwrite is Write for a file that is mostly there, and is not cut to nothing first: ext4 writes out a file that was (ext4(5),
// auto_da_alloc). A reader, or a crash, may find some of both contents. It follows no link.
func Overwrite(path string, b []byte, mode uint32) error {
	fd, err := open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_NOFOLLOW, mode)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	err = unix.Fstat(fd, &st)
	if err == nil && st.Size > int64(len(b)) {
		err = unix.Ftruncate(fd, int64(len(b)))
	}
	if err != nil {
		_ = unix.Close(fd)
		return &fs.PathError{Op: "truncate", Path: path, Err: err}
	}
	return finish(path, fd, b)
}

// Reuse writes a file that was taken out of use, if it is one that can be used again: a regular one of ours with that mode and
// with no other name. Else, as for one that is not there, it is an error.
func Reuse(path string, b []byte, mode uint32) error {
	fd := reuse(path, len(b), mode)
	if fd < 0 {
		return &fs.PathError{Op: "reuse", Path: path, Err: fs.ErrInvalid}
	}
	return finish(path, fd, b)
}

// Rename is os.Rename without its look at what is there, which is for a better message if that is a directory.
func Rename(from, to string) error {
	for {
		err := unix.Rename(from, to)
		if err == nil {
			return nil
		}
		if err != unix.EINTR {
			return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
		}
	}
}

func open(path string, flags int, mode uint32) (int, error) {
	for {
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC, mode)
		if err == nil {
			return fd, nil
		}
		if err != unix.EINTR {
			return -1, &fs.PathError{Op: "open", Path: path, Err: err}
		}
	}
}

// finish writes from the file's beginning and closes it.
func finish(path string, fd int, b []byte) error {
	var err error
	for done := 0; done < len(b) && err == nil; {
		n, werr := unix.Pwrite(fd, b[done:], int64(done))
		switch {
		case werr == unix.EINTR:
		case werr == nil && n == 0:
			err = io.ErrShortWrite
		default:
			done, err = done+max(n, 0), werr
		}
	}
	if cerr := unix.Close(fd); err == nil && cerr != unix.EINTR { // close(2): it is closed then
		err = cerr
	}
	if err != nil {
		return &fs.PathError{Op: "write", Path: path, Err: err}
	}
	return nil
}

// Spares are files that have been taken out of use, for the next that are to be written. They are in the directory of those in
// use, or in one of the same file system, under names with a prefix of their own. After a crash Clean removes them. Safe for
// concurrent use.
type Spares struct {
	dir, prefix string
	limit       int

	mu   sync.Mutex
	free []string
	next uint64
}

// Enough is how many spares of a kind serve a node on which all pods end and as many others start: 500 pods are more than
// kubelet runs by default by far. They take up some KB each.
const Enough = 512

// NewSpares keeps so many files at most. prefix must be nobody else's in dir.
func NewSpares(dir, prefix string, limit int) *Spares {
	return &Spares{dir: dir, prefix: prefix, limit: limit}
}

// Clean removes all files of the prefix, also those of a former process. Nothing may be between Temp and its rename.
func (s *Spares) Clean() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free = nil
	entries, err := os.ReadDir(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), s.prefix) {
			if rerr := os.Remove(filepath.Join(s.dir, e.Name())); rerr != nil && !errors.Is(rerr, fs.ErrNotExist) {
				err = errors.Join(err, rerr)
			}
		}
	}
	return err
}

// name returns a name that no file has. s.mu is held.
func (s *Spares) name() string {
	s.next++
	return filepath.Join(s.dir, s.prefix+strconv.FormatUint(s.next, 36))
}

// Remove takes a file out of use: it has no name any more but, perhaps, one of a spare. os.ErrNotExist.
// A directory is removed if it is empty.
func (s *Spares) Remove(path string) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return &fs.PathError{Op: "remove", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG { // it would be of no use, and a directory not even be gone for those who clean up
		return os.Remove(path)
	}
	s.mu.Lock()
	if len(s.free) >= s.limit {
		s.mu.Unlock()
		return unlink(path)
	}
	spare := s.name()
	s.mu.Unlock()
	switch err := unix.Rename(path, spare); err {
	case nil:
	case unix.ENOENT:
		return &fs.PathError{Op: "remove", Path: path, Err: err}
	default: // another file system, for one
		return unlink(path)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.free = append(s.free, spare)
	return nil
}

func unlink(path string) error {
	if err := unix.Unlink(path); err != nil {
		return &fs.PathError{Op: "remove", Path: path, Err: err}
	}
	return nil
}

// Temp writes a file that the caller renames to where it belongs, or removes; where there is a spare, it is that one. On error
// there is none.
func (s *Spares) Temp(b []byte, mode uint32) (path string, err error) {
	s.mu.Lock()
	n := len(s.free)
	if n == 0 {
		path = s.name()
		s.mu.Unlock()
		return path, fresh(path, b, mode)
	}
	path = s.free[n-1]
	s.free = s.free[:n-1]
	s.mu.Unlock()
	if fd := reuse(path, len(b), mode); fd >= 0 {
		err := finish(path, fd, b)
		if err != nil {
			_ = unix.Unlink(path)
		}
		return path, err
	}
	_ = unix.Unlink(path)
	return path, fresh(path, b, mode)
}

// fresh makes a new file. Another process may have a spare of that name, which it can do without.
func fresh(path string, b []byte, mode uint32) error {
	err := Create(path, b, mode)
	if errors.Is(err, fs.ErrExist) {
		_ = unix.Unlink(path)
		err = Create(path, b, mode)
	}
	if err != nil {
		_ = unix.Unlink(path)
	}
	return err
}

// reuse opens a spare that is to have size bytes, -1 for one that is of no use: what was taken out of use may have been anything,
// and may have another name by which somebody keeps it.
func reuse(path string, size int, mode uint32) int {
	fd, err := open(path, unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return -1
	}
	var st unix.Stat_t
	if unix.Fstat(fd, &st) == nil && st.Mode == unix.S_IFREG|mode && st.Nlink == 1 && int(st.Uid) == os.Geteuid() &&
		(st.Size <= int64(size) || unix.Ftruncate(fd, int64(size)) == nil) { // not to 0: ext4 writes a file out that was (auto_da_alloc)
		return fd
	}
	_ = unix.Close(fd)
	return -1
}
