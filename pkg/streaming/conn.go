package streaming

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// lingerTimeout is how long a client may take to close its side after the session has ended.
const lingerTimeout = 5 * time.Second

// hijacker gives the connection of a request away, as a conn.
type hijacker struct {
	http.ResponseWriter
	server context.Context    // whose end drops the connection
	end    context.CancelFunc // of the session
	conn   *conn              // nil until it was given away
}

// Hijack implements http.Hijacker.
func (h *hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	hj, ok := h.ResponseWriter.(http.Hijacker)
	if !ok {
		return nil, nil, http.ErrNotSupported
	}
	c, rw, err := hj.Hijack()
	if err != nil {
		return nil, nil, err
	}
	h.conn = &conn{Conn: c, end: h.end, gone: make(chan struct{})}
	if err := h.conn.watch(); err != nil {
		c.Close()
		return nil, nil, err
	}
	h.conn.forget = context.AfterFunc(h.server, h.conn.drop)
	return h.conn, bufio.NewReadWriter(h.conn.reader(rw.Reader), rw.Writer), nil
}

// conn is the connection of a session. It notices when the client goes although nobody reads: protocols with several
// streams in one connection don't read on while one of the streams is full. Whoever does read learns of the client's end
// only after the session has ended, so that its streams' ends can't be taken for the client's wish. Closing it is
// closing with a delay: the
// kernel throws away what is still on its way to the client when a socket with unread input is closed (RFC 1122
// 4.2.2.13).
type conn struct {
	net.Conn
	end    context.CancelFunc
	forget func() bool // the server's end
	socket *os.File    // a second descriptor, for watching only

	closing, dropping sync.Once
	gone              chan struct{} // closed when the connection is
	watcher           sync.WaitGroup
}

// watch starts looking for the client's end.
func (c *conn) watch() error {
	inner := c.Conn
	if t, ok := inner.(interface{ NetConn() net.Conn }); ok { // *tls.Conn
		inner = t.NetConn()
	}
	sc, ok := inner.(syscall.Conn)
	if !ok {
		return fmt.Errorf("connection is a %T, no socket", inner)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return err
	}
	fd, dup := -1, error(nil)
	if err := raw.Control(func(s uintptr) { fd, dup = unix.FcntlInt(s, unix.F_DUPFD_CLOEXEC, 3) }); err != nil || dup != nil {
		return fmt.Errorf("watch a connection: %w", errors.Join(err, dup))
	}
	c.socket = os.NewFile(uintptr(fd), "connection") // non-blocking as the other one: Go's poller takes it
	poll, err := c.socket.SyscallConn()
	if err != nil {
		c.socket.Close()
		return err
	}
	c.watcher.Go(func() {
		hangup := func(fd uintptr) bool {
			p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
			n, err := unix.Poll(p, 0)
			return n > 0 || err != nil && err != unix.EINTR
		}
		if poll.Read(hangup) == nil {
			c.drop()
		}
	})
	return nil
}

// reader returns one that has what before has read already.
func (c *conn) reader(before *bufio.Reader) *bufio.Reader {
	n := before.Buffered()
	if n == 0 {
		return bufio.NewReader(c)
	}
	b, _ := before.Peek(n)
	return bufio.NewReader(io.MultiReader(bytes.NewReader(b), c))
}

// Read implements net.Conn. After an error there is nothing that a session could go on with.
func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil {
		c.end()
	}
	return n, err
}

// Close ends the session and our side of the connection. The connection goes when the client closes its side, or after
// lingerTimeout.
func (c *conn) Close() error {
	c.closing.Do(func() {
		c.end()
		if w, ok := c.Conn.(interface{ CloseWrite() error }); !ok || w.CloseWrite() != nil {
			c.drop()
			return
		}
		timer := time.AfterFunc(lingerTimeout, c.drop)
		c.watcher.Go(func() {
			_, _ = io.Copy(io.Discard, c.Conn)
			timer.Stop()
			c.drop()
		})
	})
	return nil
}

// drop closes the connection.
func (c *conn) drop() {
	c.dropping.Do(func() {
		c.end()
		c.Conn.Close()
		c.socket.Close() // its descriptor keeps the connection too; ends watch
		close(c.gone)
	})
}

// wait returns when the connection is closed.
func (c *conn) wait() {
	<-c.gone
	c.forget()
	c.watcher.Wait()
}
