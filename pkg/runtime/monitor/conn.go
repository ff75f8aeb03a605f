package monitor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"runtime/debug"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// callTime bounds every call that is not meant to wait.
const callTime = 2 * time.Minute

// conn is one connection of a client. One goroutine reads, so that a client which has gone is seen at once; the other
// answers, one request after the other.
type conn struct {
	s      *Server
	c      *net.UnixConn
	ctx    context.Context // ends with the connection
	cancel context.CancelFunc
	frames chan *frame
}

func (c *conn) close() {
	c.cancel()
	c.c.Close()
}

func (c *conn) read() {
	defer c.s.work.Done()
	defer c.cancel()
	for {
		f, err := readFrame(c.c)
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) && c.ctx.Err() == nil {
				c.s.log.Warn("connection closed", "err", err)
			}
			return
		}
		select {
		case c.frames <- f:
		case <-c.ctx.Done():
			f.closeFiles()
			return
		}
	}
}

func (c *conn) serve() {
	defer c.s.work.Done()
	defer func() {
		c.close()
		c.s.mu.Lock()
		delete(c.s.conns, c)
		c.s.mu.Unlock()
	}()
	greeted := false
	for {
		select {
		case <-c.ctx.Done():
			return
		case f := <-c.frames:
			if !greeted && f.kind != kindHello {
				f.closeFiles()
				c.s.log.Warn("connection closed", "err", "it did not begin with a hello")
				return
			}
			greeted = true
			err := c.handle(f)
			f.closeFiles()
			if err != nil {
				return // the client has gone
			}
		}
	}
}

// handle answers one request. The error is that of the connection.
func (c *conn) handle(f *frame) (err error) {
	defer func() {
		if p := recover(); p != nil { // the other containers must not suffer
			c.s.log.Error("panic", "kind", f.kind, "panic", p, "stack", string(debug.Stack()))
			err = c.fail(f, fmt.Errorf("panic in cri-monitor: %v: %w", p, errdefs.ErrInternal))
		}
	}()
	switch f.kind {
	case kindExec:
		return c.exec(f)
	case kindAttach:
		return c.attach(f)
	case kindEvents:
		return c.streamEvents(f)
	}
	result, err := c.unary(f)
	if err != nil {
		return c.fail(f, err)
	}
	return writeFrame(c.c, kindOK, f.id, result)
}

func (c *conn) fail(f *frame, err error) error {
	return writeFrame(c.c, kindError, f.id, encodeError(err))
}

// unary carries out a request that has one answer. What changes something goes on when the client leaves.
func (c *conn) unary(f *frame) (any, error) {
	s := c.s
	switch f.kind {
	case kindHello:
		var h hello
		if err := f.decode(&h); err != nil {
			return nil, err
		}
		v, err := h.negotiate()
		return hello{v, v}, err
	case kindVersion:
		return s.version, nil
	case kindList:
		return s.list(), nil
	case kindShutdown:
		return nil, s.Shutdown()
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	if f.kind == kindCreate {
		var req CreateRequest
		if err := f.decode(&req); err != nil {
			return nil, err
		}
		return s.create(ctx, &req)
	}
	var t target
	if err := f.decode(&t); err != nil {
		return nil, err
	}
	if f.kind == kindDelete {
		return nil, s.delete(ctx, t.ID)
	}
	ct, err := s.find(t.ID)
	if err != nil {
		return nil, err
	}
	switch f.kind {
	case kindStart:
		return ct.start(ctx)
	case kindState:
		return *ct.state.Load(), nil
	case kindWait:
		return ct.wait(c.ctx)
	case kindSignal:
		return nil, ct.signal(unix.Signal(t.Signal))
	case kindKill:
		return nil, ct.kill(ctx)
	case kindReopenLog:
		return nil, ct.streams.ReopenLog(ctx)
	case kindResize:
		return nil, ct.streams.Resize(ctx, t.Width, t.Height)
	}
	return nil, fmt.Errorf("request of kind %d: %w", f.kind, errdefs.ErrNotImplemented)
}
