package logs

import (
	"bytes"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// File is one container's log file, written by one goroutine.
type File struct {
	dir, path string
	fd        int
	next      int       // see Prepare; -1: none
	part      [2][]byte // per stream: the line whose newline has not come yet
	clock     clock

	// held are whole records that could not be written yet; the first wrote bytes of it are in the file already.
	held  []byte
	wrote int
	err   error // why held is not empty

	now   func() time.Time
	write func(fd int, p []byte) (int, error)
}

// Open opens, or makes, the log file path beneath dir (which must exist), for appending. Neither path nor what stands
// there can lead out of dir: ErrInvalidArgument for a path that is not local, for symlinks and for what is no regular
// file. Missing directories between dir and the file are made with mode 0755, the file with 0640.
func Open(dir, path string) (*File, error) {
	fd, err := open(dir, path)
	if err != nil {
		return nil, err
	}
	return &File{dir: dir, path: path, fd: fd, next: -1, now: time.Now, write: unix.Write}, nil
}

// Path of the file, as it was asked for.
func (f *File) Path() string { return filepath.Join(f.dir, f.path) }

// Waiting is how many bytes of records wait for the file system to take them again.
func (f *File) Waiting() int { return len(f.held) - f.wrote }

// Err is the error for which records wait; nil when none does.
func (f *File) Err() error { return f.err }

// emit writes the records in out behind those that wait. It does not keep out.
func (f *File) emit(out []byte) error {
	if len(out) == 0 {
		return f.err
	}
	if len(f.held) > 0 {
		f.held = append(f.held, out...)
		return f.err
	}
	n, err := f.writeAll(out)
	if err == nil {
		return nil
	}
	start := bytes.LastIndexByte(out[:n], '\n') + 1 // the record that was cut starts here
	f.held = append([]byte(nil), out[start:]...)
	f.wrote, f.err = n-start, err
	return err
}

// writeAll returns how much of p was written before the error.
func (f *File) writeAll(p []byte) (n int, err error) {
	for n < len(p) {
		m, err := f.write(f.fd, p[n:])
		if err == unix.EINTR || err == unix.EBADF && f.unhandle() { // it could not be opened before
			continue
		}
		n += max(m, 0)
		if err == nil && m <= 0 {
			err = unix.EIO
		}
		if err != nil {
			return n, fmt.Errorf("write log %s: %w", f.Path(), err)
		}
	}
	return n, nil
}

// Retry writes the records that wait. The error tells that some still do.
func (f *File) Retry() error {
	if len(f.held) == 0 {
		return nil
	}
	n, err := f.writeAll(f.held[f.wrote:])
	n += f.wrote
	if err == nil {
		f.held, f.wrote, f.err = nil, 0, nil
		return nil
	}
	start := bytes.LastIndexByte(f.held[:n], '\n') + 1
	f.held = append(f.held[:0], f.held[start:]...)
	f.wrote, f.err = n-start, err
	return err
}

// Reopen goes on in a new file of the same name, after the old one was renamed. On error the old file stays in use and
// no new one was made. A record that could be written only in part moves to the new file as a whole.
func (f *File) Reopen() error {
	if err := f.Prepare(); err != nil {
		return err
	}
	f.Switch()
	return nil
}

// Prepare opens the file that Switch will go on in; FD is its descriptor from now on. So whoever keeps descriptors has the
// new one before a record is in the new file: a process that dies in between would else be followed by one that goes on
// in the old file, behind what the new one has. On error nothing has changed.
func (f *File) Prepare() error {
	_ = f.Retry()
	fd, err := open(f.dir, f.path)
	if err != nil {
		return err
	}
	f.discard()
	f.next = fd
	return nil
}

// discard closes what was prepared.
func (f *File) discard() {
	if f.next >= 0 {
		unix.Close(f.next)
		f.next = -1
	}
}

// Switch goes on in the file that was prepared, if there is one.
func (f *File) Switch() {
	if f.next < 0 {
		return
	}
	if f.wrote > 0 {
		var st unix.Stat_t
		err := unix.Fstat(f.fd, &st)
		if err == nil {
			err = unix.Ftruncate(f.fd, st.Size-int64(f.wrote))
		}
		if err == nil {
			f.wrote = 0
		}
	}
	unix.Close(f.fd)
	f.fd, f.next = f.next, -1
	_ = f.Retry()
}

// Close closes the file. Records that wait get one last chance; the error tells how many bytes were lost.
func (f *File) Close() error {
	err := f.Retry()
	if err != nil {
		err = fmt.Errorf("%d bytes of output lost: %w", f.Waiting(), err)
	}
	f.discard()
	unix.Close(f.fd)
	f.fd, f.held, f.part = -1, nil, [2][]byte{}
	return err
}

// open returns the descriptor of path beneath dir, made where it is missing.
func open(dir, path string) (int, error) {
	if !filepath.IsLocal(path) || filepath.Clean(path) == "." || strings.HasSuffix(path, "/") {
		return -1, fmt.Errorf("log path %q is not beneath %s: %w", path, dir, errdefs.ErrInvalidArgument)
	}
	at, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("log directory %s: %w", dir, kind(err))
	}
	defer func() { unix.Close(at) }()
	parts := strings.Split(filepath.Clean(path), "/")
	for _, name := range parts[:len(parts)-1] {
		next, err := subdir(at, name)
		if err != nil {
			return -1, fmt.Errorf("log directory %q in %s: %w", name, dir, kind(err))
		}
		unix.Close(at)
		at = next
	}
	// O_NONBLOCK: a FIFO standing there must not stop us; it has no effect on a regular file.
	fd, err := openat2(at, parts[len(parts)-1],
		unix.O_WRONLY|unix.O_APPEND|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o640)
	if err != nil {
		return -1, fmt.Errorf("log file %s in %s: %w", path, dir, kind(err))
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		unix.Close(fd)
		return -1, fmt.Errorf("log file %s in %s is no regular file: %w", path, dir, errdefs.ErrInvalidArgument)
	}
	return fd, nil
}

// subdir opens the directory name in at and makes it first where it is missing.
func subdir(at int, name string) (int, error) {
	const flags = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW
	fd, err := openat2(at, name, flags, 0)
	if err != unix.ENOENT {
		return fd, err
	}
	if err := unix.Mkdirat(at, name, 0o755); err != nil && err != unix.EEXIST {
		return -1, err
	}
	return openat2(at, name, flags, 0)
}

// openat2 (Linux 5.6) opens path below at and follows no link.
func openat2(at int, path string, flags uint64, mode uint64) (int, error) {
	how := unix.OpenHow{
		Flags:   flags | unix.O_CLOEXEC,
		Mode:    mode,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	}
	for {
		fd, err := unix.Openat2(at, path, &how)
		if err != unix.EINTR && err != unix.EAGAIN { // EAGAIN: a rename raced with the walk
			return fd, err
		}
	}
}

// kind maps an errno to the errdefs kind that a caller can act on.
func kind(err error) error {
	switch {
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
	case errors.Is(err, unix.ELOOP), errors.Is(err, unix.EXDEV), errors.Is(err, unix.ENOTDIR),
		errors.Is(err, unix.EISDIR), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENAMETOOLONG):
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM), errors.Is(err, unix.EROFS):
		return fmt.Errorf("%w: %w", err, errdefs.ErrPermissionDenied)
	}
	return err
}
