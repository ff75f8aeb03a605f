package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/containerd/errdefs"
	"github.com/coreos/go-systemd/v22/activation"
	"golang.org/x/sys/unix"
)

// criListener is the socket that systemd handed over, or one made at path.
func criListener(ctx context.Context, path string, mode os.FileMode, group string) (net.Listener, error) {
	handed, err := activation.Listeners()
	if err != nil {
		return nil, fmt.Errorf("socket activation: %w", err)
	}
	var unixes []net.Listener
	for _, l := range handed {
		if u, ok := l.(*net.UnixListener); ok {
			u.SetUnlinkOnClose(false) // systemd's own, to be there for the next start
			unixes = append(unixes, u)
		}
	}
	switch len(unixes) {
	case 0:
		gid, err := lookupGroup(group)
		if err != nil {
			return nil, err
		}
		return listenUnix(ctx, path, mode, gid)
	case 1:
		return unixes[0], nil
	}
	return nil, fmt.Errorf("socket activation: %d unix sockets were handed over, one is wanted: %w", len(unixes), errdefs.ErrInvalidArgument)
}

func lookupGroup(group string) (int, error) {
	if gid, err := strconv.ParseUint(group, 10, 31); err == nil {
		return int(gid), nil
	}
	if group == "root" { // there may be no /etc/group
		return 0, nil
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		return 0, fmt.Errorf("socket_group: %w", err)
	}
	return strconv.Atoi(g.Gid)
}

// listenUnix makes the socket. One that a dead server left is replaced; one that is answered is not, nor is anything that
// is no socket. The caller's locks keep a second cri-server away; the check is for a server with other directories.
func listenUnix(ctx context.Context, path string, mode os.FileMode, gid int) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	if err := removeStale(ctx, path); err != nil {
		return nil, err
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		// The file gets the mode that the socket has before bind(2), so that it never has a wider one than ours.
		var cerr error
		err := c.Control(func(fd uintptr) { cerr = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(err, cerr)
	}}
	l, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	if err := errors.Join(os.Chown(path, 0, gid), os.Chmod(path, mode)); err != nil {
		l.Close()
		return nil, fmt.Errorf("socket: %w", err)
	}
	return l, nil
}

func removeStale(ctx context.Context, path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("socket: %w", err)
	}
	if st.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("socket: %s is there and is no socket: %w", path, errdefs.ErrAlreadyExists)
	}
	var d net.Dialer // without a timeout: connect(2) to a unix socket does not wait here, and a busy machine is no answer
	c, err := d.DialContext(ctx, "unix", path)
	if err == nil {
		defer c.Close()
		return fmt.Errorf("socket: another server answers at %s%s: %w", path, peer(c), errdefs.ErrAlreadyExists)
	}
	// Only a refused connection tells that nobody listens; a full backlog or a lack of rights does not.
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("socket: %s can't be told to be free: %w", path, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("socket: %w", err)
	}
	return nil
}

// peer says which process listens, as far as the kernel tells (SO_PEERCRED, unix(7)).
func peer(c net.Conn) string {
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return ""
	}
	text := ""
	_ = raw.Control(func(fd uintptr) {
		if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil && cred.Pid > 0 {
			text = fmt.Sprintf(" (pid %d)", cred.Pid)
		}
	})
	return text
}
