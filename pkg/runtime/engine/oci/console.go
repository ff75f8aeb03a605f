package oci

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// console is the socket to which a runtime sends the master of the pty that it made (runc's --console-socket
// protocol: one connection, one message, one fd).
type console struct {
	path string
	sock *net.UnixListener
	got  chan result // closed by the receiver when it ends
}

type result struct {
	master *os.File
	err    error
}

// listen makes the socket dir/name and starts waiting for the runtime. The terminal gets its size (nil: none) as soon as
// it is there: the program of an exec runs already when the runtime returns, and crun leaves the size alone.
func listen(dir, name string, size *specs.Box) (*console, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	// Through the fd, since dir may be longer than sun_path (unix(7)).
	sock, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), name)})
	if err != nil {
		return nil, err
	}
	sock.SetUnlinkOnClose(false) // by then that fd is another file
	c := &console{path: filepath.Join(dir, name), sock: sock, got: make(chan result, 1)}
	go func() {
		defer close(c.got)
		master, err := receive(sock)
		if err == nil && size != nil {
			if err = resize(master, size); err != nil {
				master.Close()
				master, err = nil, fmt.Errorf("console size: %w", err)
			}
		}
		c.got <- result{master, err}
	}()
	return c, nil
}

// master returns the pty; the runtime has exited with 0, so it is there or on its way.
func (c *console) master(ctx context.Context) (*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, consoleTimeout)
	defer cancel()
	select {
	case r := <-c.got:
		return r.master, r.err
	case <-ctx.Done():
		return nil, fmt.Errorf("the runtime sent no terminal: %w", ctx.Err())
	}
}

// close ends the receiver, waits for it, and drops a terminal that nobody took.
func (c *console) close() {
	c.sock.Close()
	for r := range c.got {
		if r.master != nil {
			r.master.Close()
		}
	}
	os.Remove(c.path)
}

func receive(sock *net.UnixListener) (*os.File, error) {
	conn, err := sock.AcceptUnix()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(consoleTimeout)); err != nil {
		return nil, err
	}
	data, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4*8))
	_, n, _, _, err := conn.ReadMsgUnix(data, oob)
	if err != nil {
		return nil, err
	}
	fds, err := rights(oob[:n])
	if err != nil {
		return nil, err
	}
	if len(fds) != 1 {
		closeAll(fds)
		return nil, fmt.Errorf("%d fds in the message, not one", len(fds))
	}
	// Non-blocking, so that a reader can be interrupted by Close or a deadline.
	if _, err := unix.IoctlGetWinsize(fds[0], unix.TIOCGWINSZ); err != nil {
		closeAll(fds)
		return nil, fmt.Errorf("not a terminal: %w", err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		closeAll(fds)
		return nil, err
	}
	return os.NewFile(uintptr(fds[0]), "console"), nil
}

// rights unpacks SCM_RIGHTS (unix(7)); Go's runtime has set close-on-exec.
func rights(oob []byte) ([]int, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var fds []int
	for i := range messages {
		some, err := unix.ParseUnixRights(&messages[i])
		if errors.Is(err, unix.EINVAL) {
			continue // credentials or another kind of message
		}
		fds = append(fds, some...)
	}
	return fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

func resize(tty *os.File, size *specs.Box) error {
	raw, err := tty.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		set = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: uint16(size.Height), Col: uint16(size.Width)})
	})
	return errors.Join(err, set)
}
