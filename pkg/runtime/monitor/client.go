package monitor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/faultpoint"
)

// maxIdle is how many connections are kept for the next calls.
const maxIdle = 8

// Client talks to a cri-monitor. After a restart of either side it simply connects again. With Keep it also sees to it
// that there is a cri-monitor, and calls wait for the next one when one has died.
type Client struct {
	socket string

	mu     sync.Mutex
	idle   []*net.UnixConn
	keeper *keeper // nil without Keep
	closed bool
	// stocking: a spare connection is being opened; stocked waits for that.
	stocking bool
	stocked  sync.WaitGroup
}

// Dial returns a Client once a cri-monitor has answered on socket. ErrUnavailable when none does.
func Dial(ctx context.Context, socket string) (*Client, error) {
	c := &Client{socket: socket}
	uc, err := c.connect(ctx)
	if err != nil {
		return nil, err
	}
	c.put(uc)
	return c, nil
}

// Close closes the idle connections. Calls under way, execs, attachments and event streams are not disturbed.
func (c *Client) Close() error {
	if k := c.kept(); k != nil {
		k.close()
	}
	c.mu.Lock()
	c.closed = true
	for _, uc := range c.idle {
		uc.Close()
	}
	c.idle = nil
	c.mu.Unlock()
	c.stocked.Wait() // at most frameTime
	return nil
}

// connect opens a connection and agrees on the protocol.
func (c *Client) connect(ctx context.Context) (*net.UnixConn, error) {
	ctx, cancel := context.WithTimeout(ctx, frameTime)
	defer cancel()
	var d net.Dialer
	nc, err := d.DialContext(ctx, "unix", c.socket)
	if err != nil {
		return nil, fmt.Errorf("cri-monitor does not answer: %w: %w", err, errLost)
	}
	uc := nc.(*net.UnixConn)
	var agreed hello
	if err := roundTrip(ctx, uc, kindHello, hello{protocolMin, protocolMax}, &agreed); err != nil {
		uc.Close()
		return nil, fmt.Errorf("cri-monitor: %w", err)
	}
	return uc, nil
}

func (c *Client) kept() *keeper {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.keeper
}

// dial opens a connection to the cri-monitor that has everything, and waits for it while it has died.
func (c *Client) dial(ctx context.Context) (*net.UnixConn, error) {
	k := c.kept()
	if k == nil {
		return c.connect(ctx)
	}
	for {
		if err := k.await(ctx); err != nil {
			return nil, err
		}
		uc, err := c.connect(ctx)
		switch {
		case err == nil && k.serves(uc):
			return uc, nil
		case err == nil:
			uc.Close()
		case !errors.Is(err, errLost):
			return nil, err
		}
		if err := k.changing(ctx); err != nil {
			return nil, err
		}
	}
}

// get returns an idle connection, or a new one.
func (c *Client) get(ctx context.Context) (*net.UnixConn, error) {
	for {
		c.mu.Lock()
		if c.closed {
			c.mu.Unlock()
			return nil, fmt.Errorf("client is closed: %w", errdefs.ErrFailedPrecondition)
		}
		n := len(c.idle)
		if n == 0 {
			c.mu.Unlock()
			return c.dial(ctx)
		}
		uc := c.idle[n-1]
		c.idle = c.idle[:n-1]
		c.mu.Unlock()
		if alive(uc) {
			return uc, nil
		}
		uc.Close()
	}
}

func (c *Client) put(uc *net.UnixConn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || len(c.idle) >= maxIdle {
		uc.Close()
		return
	}
	c.idle = append(c.idle, uc)
}

// stock sees to it that there is an idle connection: an exec takes one along, and the next should not have to wait for
// another.
func (c *Client) stock() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.stocking || len(c.idle) > 0 {
		return
	}
	c.stocking = true
	c.stocked.Go(func() {
		uc, err := c.connect(context.Background())
		c.mu.Lock()
		c.stocking = false
		k := c.keeper
		c.mu.Unlock()
		switch {
		case err != nil: // who needs one finds out why
		case k != nil && !k.serves(uc):
			uc.Close()
		default:
			c.put(uc)
		}
	})
}

// alive tells whether nothing has come on an idle connection, not even its end: cri-monitor may have been restarted.
func alive(uc *net.UnixConn) bool {
	raw, err := uc.SyscallConn()
	if err != nil {
		return false
	}
	ok := false
	err = raw.Read(func(fd uintptr) bool {
		var b [1]byte
		_, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		ok = err == unix.EAGAIN
		return true
	})
	return err == nil && ok
}

// limit gives a call that has no deadline callTime and a little, so that the server's own deadline comes first.
func limit(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, callTime+frameTime)
}

// call carries out a unary call on a pooled connection, see limit.
func (c *Client) call(ctx context.Context, k kind, in, out any) error {
	if k != kindWait {
		var cancel context.CancelFunc
		ctx, cancel = limit(ctx)
		defer cancel()
	}
	for try := 0; ; try++ {
		err := c.try(ctx, func(uc *net.UnixConn) error { return roundTrip(ctx, uc, k, in, out) })
		if !errors.Is(err, errLost) || c.kept() == nil || ctx.Err() != nil || try == maxTries {
			return again(try, k, err)
		}
	}
}

// maxTries is how often a call is repeated that has lost its cri-monitor.
const maxTries = 5

// try carries out a call once.
func (c *Client) try(ctx context.Context, call func(*net.UnixConn) error) error {
	if err := faultpoint.Hit("monitor.client.call"); err != nil {
		return err
	}
	uc, err := c.get(ctx)
	if err != nil {
		return err
	}
	err = call(uc)
	faultpoint.Pass("monitor.client.answered")
	var remote *remoteError
	if err == nil || errors.As(err, &remote) {
		c.put(uc)
	} else {
		uc.Close()
	}
	return err
}

// roundTrip sends a request and waits for its answer. After an error other than a remoteError, or when ctx has ended,
// the connection can't be used any more.
func roundTrip(ctx context.Context, uc *net.UnixConn, k kind, in, out any, files ...*os.File) error {
	f, err := exchange(ctx, uc, k, in, files...)
	if err != nil {
		return err
	}
	return f.result(out)
}

// exchange returns the answer of a request, whatever kind it is but an error.
func exchange(ctx context.Context, uc *net.UnixConn, k kind, in any, files ...*os.File) (*frame, error) {
	return answer(ctx, uc, func() error { return writeFrame(uc, k, 1, in, files...) })
}

// answer returns the answer of what ask sends, as exchange does.
func answer(ctx context.Context, uc *net.UnixConn, ask func() error) (*frame, error) {
	stop := context.AfterFunc(ctx, func() { uc.Close() })
	err := ask()
	var f *frame
	if err == nil {
		f, err = readFrame(uc, nil)
	}
	if !stop() { // closed under our hands
		uc.Close() // perhaps not yet; the other side must see that before it sees what closing the files leads to
		if f != nil {
			f.closeFiles()
		}
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, lost(err)
	}
	return f, f.err()
}

// err is the error that an answer carries.
func (f *frame) err() error {
	if f.kind != kindError {
		return nil
	}
	f.closeFiles()
	var w wireError
	if err := f.decode(&w); err != nil {
		return err
	}
	return w.decode()
}

// errLost is the end of a connection.
var errLost = fmt.Errorf("it was lost: %w", errdefs.ErrUnavailable)

// lost describes the failure of a connection.
func lost(err error) error {
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("cri-monitor has closed the connection: %w", errLost)
	}
	if errors.Is(err, errdefs.ErrInvalidArgument) {
		return err
	}
	return fmt.Errorf("connection to cri-monitor: %w: %w", err, errLost)
}

// Version tells which cri-monitor answers.
func (c *Client) Version(ctx context.Context) (v Version, err error) {
	err = c.call(ctx, kindVersion, nil, &v)
	return v, err
}

// Start runs a created container's program. ErrNotFound and ErrPermissionDenied tell about the program, or the
// container; ErrFailedPrecondition when it is not in the state created.
func (c *Client) Start(ctx context.Context, id string) (st State, err error) {
	err = c.call(ctx, kindStart, target{ID: id}, &st)
	if errors.Is(err, errRepeated) && errdefs.IsFailedPrecondition(err) {
		now, serr := c.State(ctx, id)
		switch {
		case serr != nil:
		case now.StartError != "":
			return State{}, fmt.Errorf("%s: %w", now.StartError, errdefs.ErrUnavailable)
		case !now.StartedAt.IsZero(): // by the first try
			return now, nil
		}
	}
	return st, err
}

// Signal sends sig to the container's init. ErrNotFound when it has ended.
func (c *Client) Signal(ctx context.Context, id string, sig unix.Signal) error {
	return c.call(ctx, kindSignal, target{ID: id, Signal: int(sig)}, nil)
}

// Kill sends SIGKILL to all processes of the container.
func (c *Client) Kill(ctx context.Context, id string) error {
	return c.call(ctx, kindKill, target{ID: id}, nil)
}

// Wait returns the state of the container once it is stopped and its log is written out. It has no deadline but ctx's.
func (c *Client) Wait(ctx context.Context, id string) (st State, err error) {
	err = c.call(ctx, kindWait, target{ID: id}, &st)
	return st, err
}

// Delete kills what is left of the container and forgets it. It is no error if there is none.
func (c *Client) Delete(ctx context.Context, id string) error {
	return c.call(ctx, kindDelete, target{ID: id}, nil)
}

// State returns what is known of a container.
func (c *Client) State(ctx context.Context, id string) (st State, err error) {
	err = c.call(ctx, kindState, target{ID: id}, &st)
	return st, err
}

// List returns the state of all containers, by id.
func (c *Client) List(ctx context.Context) (list []State, err error) {
	err = c.call(ctx, kindList, nil, &list)
	return list, err
}

// ReopenLog makes the container's log go on in a new file, after the old one was renamed. On error it goes on in the
// old one, and no new file was made.
func (c *Client) ReopenLog(ctx context.Context, id string) error {
	return c.call(ctx, kindReopenLog, target{ID: id}, nil)
}

// Resize sets the size of the container's terminal in characters. ErrFailedPrecondition without one.
func (c *Client) Resize(ctx context.Context, id string, width, height uint16) error {
	return c.call(ctx, kindResize, target{ID: id, Width: width, Height: height}, nil)
}

// Upgrade makes cri-monitor go on in the program at path, without the loss of anything: same process, same children,
// same connections. ErrUnavailable when it has too much under way just now; then, and whenever else there is an error,
// the old program goes on.
func (c *Client) Upgrade(ctx context.Context, path string) (v Version, err error) {
	f, err := os.Open(path)
	if err != nil {
		return v, err
	}
	defer f.Close()
	uc, err := c.dial(ctx)
	if err != nil {
		return v, err
	}
	defer uc.Close()
	err = roundTrip(ctx, uc, kindUpgrade, nil, &v, f)
	return v, err
}

// Shutdown ends cri-monitor. ErrFailedPrecondition while containers exist.
func (c *Client) Shutdown(ctx context.Context) error {
	return c.call(ctx, kindShutdown, nil, nil)
}

// deadline is the time limit for opening a connection of its own.
func deadline(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, callTime+time.Second)
}
