package rootfs

import (
	"fmt"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// layers are descriptors of an overlay's directories.
type layers struct {
	lower       []int
	upper, work int // -1: none
	writable    int // clone of the directory that holds upper and work: both must lie on one mount
}

func (l *layers) close() {
	for _, fd := range append(l.lower, l.upper, l.work, l.writable) {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// clones opens each layer through a detached clone of its mount.
func (r Rootfs) clones(o Options) (_ *layers, err error) {
	l := &layers{upper: -1, work: -1, writable: -1}
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	for _, p := range r.Lower {
		fd, err := clone(unix.AT_FDCWD, p, 0, o)
		if err != nil {
			return nil, err
		}
		l.lower = append(l.lower, fd)
	}
	if r.Upper == "" {
		return l, nil
	}
	if l.writable, err = clone(unix.AT_FDCWD, filepath.Dir(r.Upper), 0, o); err != nil {
		return nil, err
	}
	if l.upper, err = child(l.writable, r.Upper); err == nil {
		l.work, err = child(l.writable, r.Work)
	}
	if err != nil {
		return nil, err
	}
	return l, nil
}

func child(dir int, path string) (int, error) {
	const flags = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(dir, filepath.Base(path), flags, 0)
	if err != nil {
		return -1, fmt.Errorf("%s: %w", path, err)
	}
	return fd, nil
}

// overlayByFD makes the overlay with the new mount API and layers by descriptor.
func (r Rootfs) overlayByFD(o Options) (int, error) {
	l, err := r.clones(o)
	if err != nil {
		return -1, err
	}
	defer l.close()
	return r.overlay(o, func(fs int) error {
		set := func(key string, fd int) error {
			if err := unix.FsconfigSetFd(fs, key, fd); err != nil {
				return fmt.Errorf("overlay %s: %w%s", key, err, fsMessage(fs))
			}
			return nil
		}
		for _, fd := range l.lower {
			if err := set("lowerdir+", fd); err != nil {
				return err
			}
		}
		if r.Upper == "" {
			return nil
		}
		if err := set("upperdir", l.upper); err != nil {
			return err
		}
		return set("workdir", l.work)
	})
}

// overlayByName makes the overlay with the new mount API and layers by name, each named from a working directory where
// its name tells nothing. It takes no clones: whoever drops a detached mount waits for a grace period of RCU, which may be
// a fifth of the time that a container takes. It moves the thread's working directory, which must be its own.
func (r Rootfs) overlayByName(o Options) (int, error) {
	return r.overlay(o, func(fs int) error {
		set := func(key, dir, name string) error {
			err := unix.Chdir(dir)
			if err == nil {
				err = unix.FsconfigSetString(fs, key, name)
			}
			if err != nil {
				return fmt.Errorf("overlay %s %s: %w%s", key, dir, err, fsMessage(fs))
			}
			return nil
		}
		for _, dir := range r.Lower {
			if err := set("lowerdir+", dir, "."); err != nil {
				return err
			}
		}
		if r.Upper == "" {
			return nil
		}
		if err := set("upperdir", filepath.Dir(r.Upper), filepath.Base(r.Upper)); err != nil {
			return err
		}
		if err := unix.FsconfigSetString(fs, "workdir", filepath.Base(r.Work)); err != nil { // its sibling
			return fmt.Errorf("overlay workdir %s: %w%s", r.Work, err, fsMessage(fs))
		}
		return nil
	})
}

// overlay makes an overlay of the layers that set gives to the file system context.
func (r Rootfs) overlay(o Options, set func(fs int) error) (int, error) {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen overlay: %w", err)
	}
	defer unix.Close(fs)
	if err := set(fs); err != nil {
		return -1, err
	}
	for _, kv := range append(r.options(o), [2]string{"source", "overlay"}) {
		if err := setOption(fs, kv[0], kv[1]); err != nil {
			return -1, fmt.Errorf("overlay option %s: %w%s", kv[0], err, fsMessage(fs))
		}
	}
	if err := o.asRoot(func() error { return unix.FsconfigCreate(fs) }); err != nil {
		return -1, fmt.Errorf("overlay create: %w%s", err, fsMessage(fs))
	}
	attrs := 0
	if o.ReadOnly || r.Upper == "" {
		attrs = unix.MOUNT_ATTR_RDONLY
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return -1, fmt.Errorf("overlay fsmount: %w%s", err, fsMessage(fs))
	}
	return fd, nil
}

func setOption(fs int, key, value string) error {
	if value == "" {
		return unix.FsconfigSetFlag(fs, key)
	}
	return unix.FsconfigSetString(fs, key, value)
}

// fsMessage reads what the kernel has logged about a file system context, as ": text".
func fsMessage(fs int) string {
	var all []string
	buf := make([]byte, 1024)
	for len(all) < 4 {
		n, err := unix.Read(fs, buf)
		if err != nil || n <= 0 {
			break
		}
		all = append(all, strings.TrimSpace(string(buf[:n])))
	}
	if len(all) == 0 {
		return ""
	}
	return " (" + strings.Join(all, "; ") + ")"
}
