package rootfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// fuseStart bounds how long a FUSE server may take until it answers.
const fuseStart = 20 * time.Second

// fuse makes a detached mount that r.Fuse serves: the program is given /dev/fuse's descriptor instead of a place to mount
// at (mount.fuse3(8), "/dev/fd/N"). It runs by itself, as nobody's child, and ends when the last mount and descriptor of
// its file system are gone, so it outlives this process as the containers do.
func (r Rootfs) fuse(o Options) (int, error) {
	switch {
	case o.UserNS != nil:
		return -1, fmt.Errorf("a pod's own user namespace on %s, which has no id-mapped mounts: %w", r.Fuse, errdefs.ErrNotImplemented)
	case o.Label != "":
		return -1, fmt.Errorf("SELinux label on %s: %w", r.Fuse, errdefs.ErrNotImplemented)
	}
	dev, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("/dev/fuse: %w", err)
	}
	fd, err := fuseMount(dev)
	if err == nil {
		if err = r.serve(dev); err != nil {
			unix.Close(fd)
		}
	}
	unix.Close(dev) // the server has its own: once that is gone, the mount answers ENOTCONN and does not hang
	if err != nil {
		return -1, err
	}
	if o.ReadOnly || r.Upper == "" {
		if err := setReadOnly(fd); err != nil {
			unix.Close(fd)
			return -1, fmt.Errorf("read-only: %w", err)
		}
	}
	return fd, nil
}

// fuseMount makes the mount, which nobody serves yet.
func fuseMount(dev int) (int, error) {
	fs, err := unix.Fsopen("fuse", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("fsopen fuse: %w", err)
	}
	defer unix.Close(fs)
	// Documentation/filesystems/fuse.rst: the kernel checks permissions, and other users than the server's get in.
	for _, kv := range [][2]string{
		{"source", "fuse-overlayfs"},
		{"fd", strconv.Itoa(dev)}, {"rootmode", "40000"}, {"user_id", strconv.Itoa(os.Getuid())}, {"group_id", strconv.Itoa(os.Getgid())},
	} {
		if err := unix.FsconfigSetString(fs, kv[0], kv[1]); err != nil {
			return -1, fmt.Errorf("fuse option %s: %w", kv[0], err)
		}
	}
	for _, flag := range []string{"default_permissions", "allow_other"} {
		if err := unix.FsconfigSetFlag(fs, flag); err != nil {
			return -1, fmt.Errorf("fuse option %s: %w", flag, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, fmt.Errorf("mount fuse: %w", err)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("fsmount: %w", err)
	}
	return fd, nil
}

// serve starts the server for the descriptor dev of /dev/fuse and returns once it answers. The process started forks the
// server and ends as soon as that is ready.
func (r Rootfs) serve(dev int) error {
	out, err := unix.MemfdCreate("fuse", unix.MFD_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(out)
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(null)
	pidfd := -1
	attr := &syscall.ProcAttr{
		Dir: "/", Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"},
		Files: []uintptr{uintptr(null), uintptr(out), uintptr(out), uintptr(dev)},
		Sys:   &syscall.SysProcAttr{PidFD: &pidfd},
	}
	pid, err := syscall.ForkExec(r.Fuse, []string{r.Fuse, "-o", r.fuseOptions(), "/dev/fd/3"}, attr)
	runtime.KeepAlive(attr)
	if err != nil {
		return fmt.Errorf("start %s: %w", r.Fuse, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), fuseStart)
	defer cancel()
	if pidfd >= 0 {
		defer unix.Close(pidfd)
		defer context.AfterFunc(ctx, func() {
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0)
			}
		})()
	}
	var ws unix.WaitStatus
	for {
		_, err = unix.Wait4(pid, &ws, 0, nil)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	// ECHILD: this process has somebody who reaps all children (package reaper). Then the mount tells how it went.
	if err == nil && ws.ExitStatus() == 0 || errors.Is(err, unix.ECHILD) {
		return nil
	}
	said := make([]byte, 1024)
	n, _ := unix.Pread(out, said, 0)
	return fmt.Errorf("%s: exit status %d: %s: %w", r.Fuse, ws.ExitStatus(), strings.TrimSpace(string(said[:max(n, 0)])), errdefs.ErrFailedPrecondition)
}

// fuseOptions is what stands behind -o. A comma or colon in a path can't be said to fuse-overlayfs; Validate refuses them.
func (r Rootfs) fuseOptions() string {
	opts := append([]string{"lowerdir=" + strings.Join(r.Lower, ":")}, r.Options...)
	if r.Upper != "" {
		opts = append(opts, "upperdir="+r.Upper, "workdir="+r.Work)
	}
	return strings.Join(opts, ",")
}
