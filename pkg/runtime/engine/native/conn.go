package native

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"
)

// The orders that the stub knows; see stub/stub.c.
const (
	_ = iota + 1 // was the order to join v1 cgroups; stubs may be older than this program
	opUnshare
	opSetns
	opFork
	opSetID
	opFSMount
	opTTY
	opExec
	opRoot
	opNest
	opSpawn
	opJoin
	opPrepare
	opGo
	opTake
	opRun
)

// maxPayload is the most that the stub takes with one order.
const maxPayload = 16 << 20

// answerTimeout bounds the wait for each answer of the stub, which may be throttled by its cgroup's limits but never
// waits for anything itself.
const answerTimeout = 30 * time.Second

// conn is the socket to a stub, used by one goroutine at a time.
type conn struct{ fd int }

// Values of answers that tell of a failed fork: of the nursery's, and of a stub's to opRun.
const (
	spawnFailed = -1
	forkFailed  = -2
)

// pair returns a connection and the stub's end of it.
func pair() (conn, int, error) {
	sp, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return conn{-1}, -1, fmt.Errorf("socketpair: %w", err)
	}
	tv := unix.NsecToTimeval(answerTimeout.Nanoseconds())
	for _, opt := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err := unix.SetsockoptTimeval(sp[0], unix.SOL_SOCKET, opt, &tv); err != nil {
			unix.Close(sp[0])
			unix.Close(sp[1])
			return conn{-1}, -1, fmt.Errorf("socket timeout: %w", err)
		}
	}
	return conn{sp[0]}, sp[1], nil
}

// guard makes ctx's end cut the connection, so that a blocked call returns. release must be called before close.
func (c conn) guard(ctx context.Context) (release func()) {
	cut := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		_ = unix.Shutdown(c.fd, unix.SHUT_RDWR)
		close(cut)
	})
	return func() {
		if !stop() {
			<-cut
		}
	}
}

func (c *conn) close() {
	closeFD(c.fd)
	c.fd = -1
}

// order sends one order; fds ride on it.
func (c conn) order(op uint32, a uint64, payload []byte, fds ...int) error {
	if len(payload) > maxPayload {
		return fmt.Errorf("order of %d bytes is too large: %w", len(payload), unix.E2BIG)
	}
	head := make([]byte, 16, 16+len(payload))
	binary.NativeEndian.PutUint32(head, op)
	binary.NativeEndian.PutUint32(head[4:], uint32(len(payload)))
	binary.NativeEndian.PutUint64(head[8:], a)
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	b := append(head, payload...)
	for {
		n, err := unix.SendmsgN(c.fd, b, rights, nil, unix.MSG_NOSIGNAL)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return c.failed("send", err)
		}
		rights = nil
		if b = b[n:]; len(b) == 0 {
			return nil
		}
	}
}

// answer receives one answer: its value and a descriptor, or -1. The stub's errno comes back as *stubError, with the
// value; io.EOF when the stub has become its program, or died.
func (c conn) answer() (val, fd int, err error) {
	b, oob := make([]byte, 8), make([]byte, unix.CmsgSpace(4))
	var n, oobn int
	for {
		n, oobn, _, _, err = unix.Recvmsg(c.fd, b, oob, unix.MSG_CMSG_CLOEXEC|unix.MSG_WAITALL)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	fd = -1
	if oobn > 0 {
		if msgs, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil {
			if fds, err := unix.ParseUnixRights(&msgs[0]); err == nil && len(fds) == 1 {
				fd = fds[0]
			}
		}
	}
	switch {
	case errors.Is(err, unix.ECONNRESET), err == nil && n == 0:
		return 0, fd, io.EOF
	case err != nil:
		return 0, fd, c.failed("receive", err)
	case n != len(b):
		return 0, fd, fmt.Errorf("stub: short answer: %w", io.ErrUnexpectedEOF)
	}
	val = int(int32(binary.NativeEndian.Uint32(b[4:])))
	if no := binary.NativeEndian.Uint32(b); no != 0 {
		err = &stubError{unix.Errno(no), val}
	}
	return val, fd, err
}

// call sends an order and waits for its answer.
func (c conn) call(op uint32, a uint64, payload []byte, fds ...int) (val, fd int, err error) {
	if err := c.order(op, a, payload, fds...); err != nil {
		return 0, -1, err
	}
	return c.reply()
}

// reply is answer for orders that no stub ends with.
func (c conn) reply() (val, fd int, err error) {
	val, fd, err = c.answer()
	if errors.Is(err, io.EOF) {
		err = errStubDied
	}
	return val, fd, err
}

// do is call for orders that answer with nothing but success.
func (c conn) do(op uint32, a uint64, payload []byte, fds ...int) error {
	_, fd, err := c.call(op, a, payload, fds...)
	closeFD(fd)
	return err
}

func (conn) failed(what string, err error) error {
	switch {
	case errors.Is(err, unix.EAGAIN):
		return fmt.Errorf("stub: no answer within %s: %w", answerTimeout, context.DeadlineExceeded)
	case errors.Is(err, unix.EPIPE):
		return errStubDied
	}
	return fmt.Errorf("stub: %s: %w", what, err)
}

var errStubDied = errors.New("the container's process was killed while it was set up (out of memory, or its pid namespace ended)")

// stubError is an order that failed in the stub.
type stubError struct {
	errno unix.Errno
	val   int
}

func (e *stubError) Error() string { return e.errno.Error() }
func (e *stubError) Unwrap() error { return e.errno }
