package monitor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// callTime bounds every call that is not meant to wait.
const callTime = 2 * time.Minute

// conn is one connection of a client. One goroutine reads, so that a client which has gone is seen at once; the other
// answers, one request after the other. Both stop when the server is frozen, and what they have not done yet stays
// here for those that go on after it, be it in this program or in the next.
type conn struct {
	s      *Server
	c      *net.UnixConn
	ctx    context.Context // ends with the connection
	cancel context.CancelFunc
	frames chan *frame
	writes sync.Mutex

	life sync.Mutex // over what follows
	live int        // goroutines
	over bool
	gate *readGate

	// What follows belongs to the one that answers, and to the server while it is frozen; todo to both, see push.
	frozen  <-chan struct{} // closed by the freeze that stops both goroutines, even if that was given up meanwhile
	greeted bool
	task    task // what is under way, nil: nothing

	queue sync.Mutex
	todo  []*frame // read when a freeze began, not handled: they come before any other
}

// push keeps a frame for after a freeze.
func (c *conn) push(f *frame) {
	c.queue.Lock()
	defer c.queue.Unlock()
	c.todo = append(c.todo, f)
}

// pop returns the first frame that was read before a freeze, nil if there is none.
func (c *conn) pop() (f *frame) {
	c.queue.Lock()
	defer c.queue.Unlock()
	if len(c.todo) > 0 {
		f, c.todo = c.todo[0], c.todo[1:]
	}
	return f
}

// more waits for a further frame of a request that has several. An error must end the connection: what is still to come of
// the request would be taken for another, and after a freeze nobody reads it.
func (c *conn) more() (*frame, error) {
	if f := c.pop(); f != nil {
		return f, nil
	}
	select {
	case f := <-c.frames:
		return f, nil
	case <-c.ctx.Done():
		return nil, c.ctx.Err()
	case <-c.frozen:
		return nil, fmt.Errorf("cri-monitor is about to be upgraded: %w", errdefs.ErrUnavailable)
	}
}

// task is something that a request has begun and that goes on after it.
type task interface {
	// run serves it until it is over, the connection's end (its error), or errFrozen: then run goes on later.
	run(c *conn) error
	// save describes it, with its descriptors, while the server is frozen.
	save() (savedTask, []int)
}

// errFrozen stops what can go on later.
var errFrozen = errors.New("frozen")

func (s *Server) newConn(uc *net.UnixConn) *conn {
	ctx, cancel := context.WithCancel(context.Background())
	return &conn{s: s, c: uc, ctx: ctx, cancel: cancel, frames: make(chan *frame)}
}

func (c *conn) close() {
	c.cancel()
	c.c.Close()
}

// finish takes no more requests and ends the task; what is being answered, as is Shutdown itself, still is.
func (c *conn) finish() {
	_ = c.c.SetWriteDeadline(time.Now().Add(frameTime))
	_ = c.c.CloseRead()
	c.cancel()
}

func (c *conn) read(gate *readGate) {
	defer c.stopped(false)
	for {
		f, err := readFrame(c.c, gate)
		if errors.Is(err, errFrozen) {
			return
		}
		if err != nil {
			defer c.cancel()
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
		case <-gate.frozen:
			c.push(f)
			return
		}
	}
}

func (c *conn) serve() {
	over := false
	defer func() { c.stopped(over) }()
	for {
		err := c.next()
		if errors.Is(err, errFrozen) {
			return
		}
		if err != nil { // the client has gone
			over = true
			c.close()
			c.s.mu.Lock()
			delete(c.s.conns, c)
			c.s.mu.Unlock()
			return
		}
	}
}

// next does one thing: the task, if there is one, else a request.
func (c *conn) next() error {
	if c.task != nil {
		err := c.guard(nil, func() error { return c.task.run(c) })
		if !errors.Is(err, errFrozen) {
			c.task = nil
		}
		return err
	}
	select { // first, since select chooses at random
	case <-c.frozen:
		return errFrozen
	default:
	}
	f := c.pop()
	if f == nil {
		select {
		case <-c.ctx.Done():
			return c.ctx.Err()
		case <-c.frozen:
			return errFrozen
		case f = <-c.frames:
		}
	}
	if !c.greeted && f.kind != kindHello {
		f.closeFiles()
		c.s.log.Warn("connection closed", "err", "it did not begin with a hello")
		return errdefs.ErrInvalidArgument
	}
	c.greeted = true
	defer f.closeFiles()
	return c.guard(f, func() error { return c.handle(f) })
}

// guard keeps a panic from the other containers. f is the request to be answered with it, nil if there is none.
func (c *conn) guard(f *frame, do func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			c.s.log.Error("panic", "panic", p, "stack", string(debug.Stack()))
			if err = fmt.Errorf("panic in cri-monitor: %v: %w", p, errdefs.ErrInternal); f != nil {
				err = c.fail(f.id, err)
			}
		}
	}()
	return do()
}

// handle answers one request. The error is that of the connection.
func (c *conn) handle(f *frame) error {
	switch f.kind {
	case kindExec, kindExecOwn:
		return c.exec(f)
	case kindAttach:
		return c.attach(f)
	case kindEvents:
		return c.streamEvents(f)
	case kindKeep:
		return c.keep(f)
	case kindRestore:
		return c.restore(f)
	case kindUpgrade:
		return c.upgrade(f)
	}
	result, err := c.unary(f)
	switch {
	case c.task != nil: // it answers
		return nil
	case err != nil:
		return c.fail(f.id, err)
	}
	return c.write(kindOK, f.id, result)
}

// write sends a frame.
func (c *conn) write(k kind, id uint64, v any, files ...*os.File) error {
	c.writes.Lock()
	defer c.writes.Unlock()
	return writeFrame(c.c, k, id, v, files...)
}

func (c *conn) fail(id uint64, err error) error { return c.write(kindError, id, encodeError(err)) }

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
		return s.measured(), nil
	case kindList:
		return s.list(), nil
	case kindShutdown:
		return nil, s.Shutdown()
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	if f.kind == kindCreate || f.kind == kindCreateInto {
		return c.create(ctx, f)
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
		c.task = &waitTask{f.id, ct}
		return nil, nil
	case kindSignal:
		return nil, ct.signal(unix.Signal(t.Signal))
	case kindKill:
		return nil, ct.kill(ctx)
	case kindKillSession:
		return nil, ct.execs.killSession(t.Session)
	case kindReopenLog:
		return nil, ct.streams.ReopenLog(ctx, ct.keep)
	case kindResize:
		return nil, ct.streams.Resize(ctx, t.Width, t.Height)
	}
	return nil, fmt.Errorf("request of kind %d: %w", f.kind, errdefs.ErrNotImplemented)
}

// waitTask waits for the end of a container.
type waitTask struct {
	id uint64 // of the request
	ct *container
}

func (w *waitTask) run(c *conn) error {
	select {
	case <-w.ct.stopped:
		return c.write(kindOK, w.id, *w.ct.state.Load())
	case <-c.ctx.Done():
		return c.ctx.Err()
	case <-c.frozen:
		return errFrozen
	}
}

func (w *waitTask) save() (savedTask, []int) {
	return savedTask{Kind: "wait", ID: w.id, Container: w.ct.id}, nil
}
