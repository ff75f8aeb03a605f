package cgroupdriver

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// buffers hold one file each: memory.stat has about 5 KiB, per-device files of hosts with many disks more.
var buffers = sync.Pool{New: func() any { b := make([]byte, 64<<10); return &b }}

// read returns a file without its last line breaks. Plain system calls: a list of a thousand containers' stats reads
// 8 000 files, and os.File's poller registration doubles their cost.
func read(dir, file string) (text string, err error) {
	err = withFile(dir, file, func(b []byte) { text = string(bytes.TrimRight(b, "\n")) })
	return text, err
}

// surely is how long a short read is for it to be the whole file: the kernel fills a page before it returns less than was
// asked for, and has no records as long as the rest of one.
const surely = 2048

// directory is one that files are read from. Where several are, it is open: the kernel takes a lock of all cgroups for each part
// of a path in it, which is half the time of reading a file.
type directory struct {
	path string
	fd   int // AT_FDCWD: only the path is known
}

func at(path string) directory { return directory{path, unix.AT_FDCWD} }

// openDirectory opens path, unless there are no descriptors left: then its files are opened by their whole paths. The caller
// closes it.
func openDirectory(path string) (directory, error) {
	fd, err := open(path, unix.O_PATH|unix.O_DIRECTORY)
	if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) {
		return at(path), nil
	}
	if err != nil {
		return directory{}, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return directory{path, fd}, nil
}

func (d directory) close() {
	if d.fd >= 0 {
		_ = unix.Close(d.fd)
	}
}

func (d directory) open(file string) (int, error) {
	if d.fd < 0 {
		return open(d.path+"/"+file, unix.O_RDONLY)
	}
	for {
		fd, err := unix.Openat(d.fd, file, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

// withFile calls f with a file's content, which is f's only until it returns.
func withFile(dir, file string, f func([]byte)) error { return at(dir).withFile(file, f) }

func (d directory) withFile(file string, f func([]byte)) error {
	fd, err := d.open(file)
	if err != nil {
		return &os.PathError{Op: "open", Path: d.path + "/" + file, Err: err}
	}
	defer unix.Close(fd)
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	n := 0
	for n < len(*buf) {
		m, err := unix.Read(fd, (*buf)[n:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return &os.PathError{Op: "read", Path: d.path + "/" + file, Err: err}
		}
		if n += m; m == 0 || n < surely {
			f((*buf)[:n])
			return nil
		}
	}
	// Larger than any buffer worth keeping: cgroup.procs of a fork bomb.
	b, err := os.ReadFile(d.path + "/" + file)
	if err == nil {
		f(b)
	}
	return err
}

func open(p string, flags int) (int, error) {
	for {
		fd, err := unix.Open(p, flags|unix.O_CLOEXEC, 0)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

// writeFlags are for files of the kernel, whose truncation would only take a lock of all cgroups.
var writeFlags = unix.O_WRONLY

// write writes value in one write(2), as the kernel takes these files. Errors say what an operator can do.
func write(dir, file, value string) error {
	p := dir + "/" + file
	fd, err := open(p, writeFlags)
	if errors.Is(err, unix.ENOENT) {
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s: %w: %w", dir, errGone, errdefs.ErrNotFound)
		}
		c, _, _ := strings.Cut(file, ".")
		return fmt.Errorf("%s is not there: this kernel lacks it, or the %s controller is not enabled in %s/cgroup.subtree_control: %w",
			p, c, filepath.Dir(dir), errdefs.ErrNotImplemented)
	}
	if err == nil {
		defer unix.Close(fd)
		_, err = unix.Write(fd, []byte(value))
	}
	if err == nil {
		return nil
	}
	var kind error = errdefs.ErrUnknown
	switch {
	case errors.Is(err, unix.ENODEV): // removed while open
		kind = errdefs.ErrNotFound
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ERANGE), errors.Is(err, unix.E2BIG):
		kind = errdefs.ErrInvalidArgument
	case errors.Is(err, unix.EBUSY):
		kind = errdefs.ErrFailedPrecondition
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES), errors.Is(err, unix.EROFS):
		kind = errdefs.ErrPermissionDenied
	case errors.Is(err, unix.EOPNOTSUPP):
		kind = errdefs.ErrNotImplemented
	}
	return fmt.Errorf("write %q to %s: %w: %w", value, p, err, kind)
}

func exists(dir, file string) bool {
	var st unix.Stat_t
	return unix.Stat(dir+"/"+file, &st) == nil
}

// procs returns the processes of one directory; none when it is gone.
func procs(dir string) ([]int, error) {
	s, err := read(dir, "cgroup.procs")
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var pids []int
	for f := range strings.FieldsSeq(s) {
		pid, err := strconv.Atoi(f)
		if err != nil {
			return nil, fmt.Errorf("%s/cgroup.procs: %w", dir, err)
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// tree returns dir and the directories below it, children before parents; none when it is gone.
func tree(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, e := range entries {
		if e.IsDir() {
			sub, err := tree(dir + "/" + e.Name())
			if err != nil {
				return nil, err
			}
			dirs = append(dirs, sub...)
		}
	}
	return append(dirs, dir), nil
}

// number reads a file that holds one; "max" is ok=false.
func number(dir, file string) (n uint64, ok bool, err error) { return at(dir).number(file) }

func (d directory) number(file string) (n uint64, ok bool, err error) {
	var wrong error
	err = d.withFile(file, func(b []byte) {
		if b = bytes.TrimRight(b, "\n"); string(b) == "max" {
			return
		}
		if n, wrong = strconv.ParseUint(string(b), 10, 64); wrong == nil {
			ok = true
		}
	})
	if wrong != nil {
		return 0, false, fmt.Errorf("%s/%s: %w", d.path, file, wrong)
	}
	return n, ok, err
}
