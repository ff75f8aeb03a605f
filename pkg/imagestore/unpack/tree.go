package unpack

import (
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// tree is the layer's directory. Paths given to it hold no symbolic links; the kernel enforces that.
type tree struct {
	fd int
	// open caches descriptors of directories by path: a tar names the files of one directory in a row.
	open map[string]int
}

// maxOpen bounds the cache; a process may hold 1024 descriptors by default and several layers unpack at once.
const maxOpen = 32

// maxSymlinks is the kernel's own bound for one resolution, path_resolution(7).
const maxSymlinks = 40

const (
	resolve   = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS
	openDir   = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	openRetry = 8
)

func (t *tree) openat2(path string, flags int) (int, error) {
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Resolve: resolve}
	var fd int
	var err error
	for range openRetry { // EAGAIN: a rename elsewhere raced with RESOLVE_BENEATH, openat2(2)
		fd, err = unix.Openat2(t.fd, path, &how)
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			break
		}
	}
	return fd, err
}

// dir returns a cached descriptor of a directory.
func (t *tree) dir(path string) (int, error) {
	if path == "." {
		return t.fd, nil
	}
	if fd, ok := t.open[path]; ok {
		return fd, nil
	}
	fd, err := t.openat2(path, openDir)
	if err != nil {
		return -1, err
	}
	t.keep(path, fd)
	return fd, nil
}

func (t *tree) keep(path string, fd int) {
	if len(t.open) >= maxOpen {
		t.forget()
	}
	if t.open == nil {
		t.open = map[string]int{}
	}
	t.open[path] = fd
}

// forget drops the cache; due whenever a directory is removed.
func (t *tree) forget() {
	for _, fd := range t.open {
		_ = unix.Close(fd)
	}
	t.open = nil
}

// dirAt is an open directory and its path; the descriptor is the cache's.
type dirAt struct {
	path string
	fd   int
}

// place is where an entry goes.
type place struct {
	dir  string
	fd   int
	base string
}

func (p place) path() string { return join(p.dir, p.base) }

// enter opens the directory that an entry lies in, following symbolic links of the layer inside the layer as a process
// with its root there would, and makes directories that are missing.
func (a *applier) enter(path string) (dirAt, error) {
	if fd, ok := a.root.open[path]; ok {
		return dirAt{path, fd}, nil
	}
	return a.walk(path, true)
}

// walk resolves path to a directory. With create, missing components are made; else ENOENT is returned.
func (a *applier) walk(path string, create bool) (dirAt, error) {
	at := dirAt{".", a.root.fd}
	todo := []string{path}
	links := 0
	for len(todo) > 0 {
		next, rest, more := strings.Cut(todo[len(todo)-1], "/")
		if more {
			todo[len(todo)-1] = rest
		} else {
			todo = todo[:len(todo)-1]
		}
		switch next {
		case "", ".":
			continue
		case "..": // of a symbolic link's target; the root's parent is the root
			parent, _ := split(at.path)
			fd, err := a.root.dir(parent)
			if err != nil {
				return dirAt{}, err
			}
			at = dirAt{parent, fd}
			continue
		}
		sub := join(at.path, next)
		if len(sub) > unix.PathMax {
			return dirAt{}, unix.ENAMETOOLONG
		}
		fd, err := a.root.dir(sub)
		switch {
		case err == nil:
			at = dirAt{sub, fd}
		case errors.Is(err, unix.ENOENT) && create:
			if at, err = a.imply(at, next); err != nil {
				return dirAt{}, err
			}
		case errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR):
			if create && a.whited(sub) {
				if at, err = a.imply(at, next); err != nil {
					return dirAt{}, err
				}
				continue
			}
			target, err := readlinkat(at.fd, next)
			if err != nil {
				return dirAt{}, fmt.Errorf("%q is not a directory: %w", sub, errdefs.ErrInvalidArgument)
			}
			if links++; links > maxSymlinks {
				return dirAt{}, fmt.Errorf("%q: %w: %w", sub, unix.ELOOP, errdefs.ErrInvalidArgument)
			}
			if strings.HasPrefix(target, "/") {
				at = dirAt{".", a.root.fd}
			}
			todo = append(todo, target)
		default:
			return dirAt{}, err
		}
	}
	return at, nil
}

func (a *applier) whited(path string) bool {
	_, ok := a.whiteouts[path]
	return ok
}

// imply makes a directory that has no entry (yet).
func (a *applier) imply(in dirAt, base string) (dirAt, error) {
	if err := a.count(); err != nil {
		return dirAt{}, err
	}
	at := place{dir: in.path, fd: in.fd, base: base}
	wasWhiteout, err := a.unwhite(at)
	if err != nil {
		return dirAt{}, err
	}
	if err := unix.Mkdirat(at.fd, base, 0o755); err != nil {
		return dirAt{}, fmt.Errorf("make %q: %w", at.path(), err)
	}
	path := at.path()
	a.manifest.add('d', path, 0o755, -1, -1, 0, 0) // the owner is whatever it got
	a.implied[path] = struct{}{}
	a.dirs[path] = dirTimes{}
	fd, err := a.root.dir(path)
	if err != nil {
		return dirAt{}, err
	}
	if err := unix.Fchmod(fd, 0o755); err != nil { // whatever the umask
		return dirAt{}, err
	}
	if wasWhiteout {
		return dirAt{path, fd}, a.setOpaque(path, fd)
	}
	return dirAt{path, fd}, nil
}

func readlinkat(dir int, base string) (string, error) {
	b := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, base, b)
	if err != nil {
		return "", err
	}
	return string(b[:n]), nil
}
