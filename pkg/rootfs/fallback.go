package rootfs

import (
	"fmt"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// scratch is where a thread with a mount namespace of its own attaches things; any directory that is always there will
// do, since nobody else sees it.
const scratch = "/proc"

// overlayByMount makes the overlay with mount(2) for older kernels: a thread with its own mount namespace attaches the
// layers' clones below short names (mount(2) takes at most a page of options), mounts the overlay and takes a detached
// clone of it along. The thread is thrown away, and its namespace with it.
func (r Rootfs) overlayByMount(o Options) (int, error) {
	type result struct {
		fd  int
		err error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if unix.Gettid() == unix.Getpid() {
			// But the main thread doesn't end so; as long as it is held here, the next goroutine gets another.
			defer runtime.UnlockOSThread()
			fd, err := r.overlayByMount(o)
			done <- result{fd, err}
			return
		}
		fd, err := r.mountHere(o)
		if err != nil {
			err = fmt.Errorf("mount overlay: %w", err)
		}
		done <- result{fd, err}
	}()
	res := <-done
	return res.fd, res.err
}

func (r Rootfs) mountHere(o Options) (int, error) {
	l, err := r.clones(o)
	if err != nil {
		return -1, err
	}
	defer l.close()
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return -1, fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return -1, fmt.Errorf("private mounts: %w", err)
	}
	if err := unix.Mount("tmpfs", scratch, "tmpfs", 0, "mode=711,size=1m"); err != nil {
		return -1, fmt.Errorf("scratch: %w", err)
	}
	if err := unix.Chdir(scratch); err != nil {
		return -1, err
	}
	names := make([]string, len(l.lower))
	for i, fd := range l.lower {
		names[i] = strconv.FormatInt(int64(i), 36)
		if err := attach(fd, names[i]); err != nil {
			return -1, err
		}
	}
	data := []string{"lowerdir=" + strings.Join(names, ":")}
	if l.writable >= 0 {
		if err := attach(l.writable, "W"); err != nil {
			return -1, err
		}
		data = append(data, "upperdir=W/"+filepath.Base(r.Upper), "workdir=W/"+filepath.Base(r.Work))
	}
	for _, kv := range r.options(o) {
		data = append(data, strings.TrimSuffix(kv[0]+"="+kv[1], "="))
	}
	if err := unix.Mkdir("R", 0o755); err != nil {
		return -1, err
	}
	var flags uintptr
	if o.ReadOnly || r.Upper == "" {
		flags = unix.MS_RDONLY
	}
	err = o.asRoot(func() error { return unix.Mount("overlay", "R", "overlay", flags, strings.Join(data, ",")) })
	if err != nil {
		return -1, err
	}
	return clone(unix.AT_FDCWD, "R", 0, Options{})
}

func attach(fd int, name string) error {
	if err := unix.Mkdir(name, 0o755); err != nil {
		return err
	}
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, name, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach layer: %w", err)
	}
	return nil
}
