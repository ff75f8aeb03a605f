package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	memfdName = "cri-monitor"
	// readyEnv names the descriptor on which a detached child tells that it serves, or why it does not.
	readyEnv = "CRI_MONITOR_READY_FD"
	readyFD  = 3
)

// sealed tells whether this process runs from the memfd.
func sealed() bool {
	exe, err := os.Readlink("/proc/self/exe")
	return err == nil && strings.HasPrefix(exe, "/memfd:"+memfdName)
}

// seal copies a program into a memfd that nobody can write to again.
func seal(program *os.File) (int, error) {
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate(memfdName, flags|unix.MFD_EXEC) // Linux 6.3; the sysctl vm.memfd_noexec asks for it
	if err == unix.EINVAL {
		fd, err = unix.MemfdCreate(memfdName, flags)
	}
	if err != nil {
		return -1, fmt.Errorf("memfd: %w", err)
	}
	if err := fill(fd, program); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("memfd: %w", err)
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("seal memfd: %w", err)
	}
	return fd, nil
}

// fill copies from into fd, which stays open: it is what gets executed.
func fill(fd int, from *os.File) error {
	st, err := from.Stat()
	if err != nil {
		return err
	}
	for left := st.Size(); left > 0; {
		n, err := unix.Sendfile(fd, int(from.Fd()), nil, int(left))
		if err != nil {
			return err
		}
		if n == 0 {
			return io.ErrUnexpectedEOF
		}
		left -= int64(n)
	}
	return nil
}

// relaunch goes on from a sealed copy: in this process, or with --detach in a new one in a session of its own, whose
// parent this process is only until it serves.
func relaunch(o *options) error {
	self, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	defer self.Close()
	fd, err := seal(self)
	if err != nil {
		return err
	}
	path := "/proc/self/fd/" + strconv.Itoa(fd)
	if !o.detach {
		return fmt.Errorf("exec: %w", syscall.Exec(path, os.Args, os.Environ()))
	}
	out := o.logFile
	if out == "" {
		out = os.DevNull
	}
	log, err := os.OpenFile(out, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		return err
	}
	defer log.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	ready, tell, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	_, err = syscall.ForkExec(path, os.Args, &syscall.ProcAttr{
		Dir:   "/",
		Env:   append(os.Environ(), readyEnv+"="+strconv.Itoa(readyFD)),
		Files: []uintptr{null.Fd(), log.Fd(), log.Fd(), tell.Fd()},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	tell.Close()
	if err != nil {
		return fmt.Errorf("exec: %w", err)
	}
	said, err := io.ReadAll(ready)
	if err != nil {
		return err
	}
	if s := string(said); s != "ready" {
		if s == "" {
			s = "it died"
		}
		return errors.New(s)
	}
	return nil
}

// tellReady tells the parent of a detached process, or systemd, that the socket is served; or the former what went wrong.
func tellReady(failure error) {
	if os.Getenv(readyEnv) != "" {
		_ = os.Unsetenv(readyEnv)
		w := os.NewFile(readyFD, "ready")
		defer w.Close()
		if failure != nil {
			_, _ = w.WriteString(failure.Error())
			return
		}
		_, _ = w.WriteString("ready")
	}
	if failure == nil {
		notifySystemd()
	}
}

// notifySystemd sends READY=1 as sd_notify(3) does.
func notifySystemd() {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	_ = os.Unsetenv("NOTIFY_SOCKET") // not for children
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return
	}
	defer c.Close()
	_, _ = c.Write([]byte("READY=1\nMAINPID=" + strconv.Itoa(os.Getpid())))
}
