package monitor

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

// stream is a connection of its own for something long-lived. One goroutine reads it; close waits for that.
type stream struct {
	uc   *net.UnixConn
	done chan struct{} // closed when the reader has ended
}

// open makes a stream by a request, and returns its answer.
func (c *Client) open(ctx context.Context, k kind, in any, files ...*os.File) (*stream, *frame, error) {
	ctx, cancel := deadline(ctx)
	defer cancel()
	uc, err := c.get(ctx)
	if err != nil {
		return nil, nil, err
	}
	f, err := exchange(ctx, uc, k, in, files...)
	if err != nil {
		uc.Close()
		return nil, nil, err
	}
	return &stream{uc: uc, done: make(chan struct{})}, f, nil
}

// read gives every frame to got until that returns false, or the connection ends; the error is that of the connection.
func (s *stream) read(got func(*frame) bool) error {
	for {
		f, err := readFrame(s.uc, nil)
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("closed: %w", errdefs.ErrAborted)
			}
			return lost(err)
		}
		f.closeFiles()
		if err := f.err(); err != nil {
			return err
		}
		if !got(f) {
			return nil
		}
	}
}

func (s *stream) close() error {
	err := s.uc.Close()
	<-s.done
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Exec is a process that runs in a container.
type Exec struct {
	// Pid in cri-monitor's pid namespace.
	Pid int
	// Terminal is the pty master, nil without a terminal. The caller closes it.
	Terminal *os.File

	client  *Client
	id      string // of the container
	session uint64
	s       *stream
	code    int
	err     error

	// stays: after a Release the connection is there for others. released: it was sent, and is heard. returned: they have it.
	stays, released, returned bool
}

// Exec runs a process in a running container and returns once it runs. The caller keeps its files in req, and closes
// the child's ends, since cri-monitor has got duplicates. The session, all processes that came of it, is killed when
// the Exec is closed, or this process dies, before Release.
func (c *Client) Exec(ctx context.Context, req *ExecRequest) (*Exec, error) {
	call, files := stdioOf(req.ID, req.Stdin, req.Stdout, req.Stderr)
	call.Releases, call.Brief, call.Own = true, req.Brief, req.Own
	call.Session = clientNumbers + rand.Uint64N(1<<62)
	x := &Exec{client: c, id: req.ID, session: call.Session}
	s, f, err := c.openExec(ctx, req, call, files)
	if err != nil {
		return nil, x.orphaned(err, 2*settleTime)
	}
	x.s = s
	var exited execExited // a program that has ended already
	started := &execStarted{}
	if f.kind == kindExited {
		err = f.decode(&exited)
		started = exited.Started
	} else if err = f.decode(started); f.kind != kindStarted {
		started = nil
	}
	if err != nil || started == nil {
		s.uc.Close()
		f.closeFiles()
		return nil, fmt.Errorf("unexpected answer of kind %d: %w", f.kind, errdefs.ErrInternal)
	}
	x.Pid, x.session, x.stays = started.Pid, started.Session, started.Stays
	if f.kind == kindExited {
		f.closeFiles()
		x.code = exited.Code
		close(s.done)
		return x, nil
	}
	if len(f.files) > 0 {
		x.Terminal = f.files[0]
		for _, extra := range f.files[1:] {
			extra.Close()
		}
	}
	go func() {
		defer close(s.done)
		x.err = s.read(func(f *frame) bool {
			var exited execExited
			if f.kind != kindExited || f.decode(&exited) != nil {
				return true
			}
			x.code = exited.Code
			return false
		})
		x.err = x.orphaned(x.err, callTime)
	}()
	return x, nil
}

// openExec sends as much as is needed.
func (c *Client) openExec(ctx context.Context, req *ExecRequest, call *stdioCall, files []*os.File) (*stream, *frame, error) {
	if req.Own {
		call.Process, call.Env = SplitEnv(lean(req.Process))
		s, f, err := c.open(ctx, kindExecOwn, call, files...)
		if !errdefs.IsNotImplemented(err) {
			return s, f, err
		}
	}
	call.Process, call.Env = SplitEnv(req.Process)
	call.Seccomp = req.Seccomp
	return c.open(ctx, kindExec, call, files...)
}

// orphaned ends what a cri-monitor that has died may have left of the session: it is nobody's now, and must not outlive it.
func (x *Exec) orphaned(err error, limit time.Duration) error {
	if !errors.Is(err, errLost) || x.client.kept() == nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if kerr := x.kill(ctx); kerr != nil {
		return fmt.Errorf("%w (its processes may live on: %w)", err, kerr)
	}
	return err
}

// Wait returns the exit code, 128+n for a death by signal n, once the process itself has ended. Processes that it left
// behind may hold its pipes open. ErrUnavailable when cri-monitor was lost, ErrAborted after Close. When the process
// has ended and ctx too, it is the exit code that counts.
func (x *Exec) Wait(ctx context.Context) (int, error) {
	select {
	case <-x.s.done:
		return x.code, x.err
	default:
	}
	select {
	case <-x.s.done:
		return x.code, x.err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// Ended is closed when Wait has something to tell.
func (x *Exec) Ended() <-chan struct{} { return x.s.done }

// Kill ends the process and all that came of it, also what it has left behind when it has ended already. It returns when
// they are gone, at the latest after 2*settleTime; Wait then tells the exit. To be called before the session's files
// are closed: what closing them leads to (SIGHUP, SIGPIPE, the end of stdin) may be the end of the process, but is not
// that of its children.
func (x *Exec) Kill() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*settleTime)
	defer cancel()
	return x.kill(ctx)
}

func (x *Exec) kill(ctx context.Context) error {
	err := x.client.call(ctx, kindKillSession, target{ID: x.id, Session: x.session}, nil)
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// Release says, after Wait, that what the process has left behind may run on until the container ends. Before, it says
// nothing for sure: cri-monitor takes it only when it has told the exit code.
func (x *Exec) Release() {
	told := false
	select {
	case <-x.s.done:
		told = x.err == nil
	default:
	}
	// A cri-monitor that does not hear it has died.
	x.released = writeFrame(x.s.uc, kindRelease, 2, nil) == nil && told
}

// Close ends the session: without Release, everything that is there of it is killed. It must not be called at the same time
// as Release.
func (x *Exec) Close() error {
	if x.returned {
		return nil
	}
	if x.released && x.stays {
		x.returned = true
		x.client.put(x.s.uc)
		return nil
	}
	err := x.s.close()
	x.client.stock()
	return err
}

// Attachment is a connection to a container's stdio.
type Attachment struct {
	s   *stream
	err error
}

// Attach connects to the stdio of a container that has not ended. The caller keeps its files and closes them, since
// cri-monitor has got duplicates. ErrFailedPrecondition when the container has ended.
func (c *Client) Attach(ctx context.Context, req *AttachRequest) (*Attachment, error) {
	call, files := stdioOf(req.ID, req.Stdin, req.Stdout, req.Stderr)
	s, f, err := c.open(ctx, kindAttach, call, files...)
	if err != nil {
		return nil, err
	}
	f.closeFiles()
	a := &Attachment{s: s}
	go func() {
		defer close(s.done)
		a.err = s.read(func(f *frame) bool { return f.kind != kindExited })
	}()
	return a, nil
}

// Wait returns nil when the container has ended and all its output was passed on, or when all files were closed at
// their other end. ErrResourceExhausted: dropped for being slow. ErrUnavailable: cri-monitor was lost.
func (a *Attachment) Wait(ctx context.Context) error {
	select {
	case <-a.s.done:
		return a.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Close ends the attachment. The container goes on.
func (a *Attachment) Close() error { return a.s.close() }

// stdioOf describes and lists the files that are there.
func stdioOf(id string, stdin, stdout, stderr *os.File) (*stdioCall, []*os.File) {
	var files []*os.File
	for _, f := range []*os.File{stdin, stdout, stderr} {
		if f != nil {
			files = append(files, f)
		}
	}
	return &stdioCall{ID: id, Stdin: stdin != nil, Stdout: stdout != nil, Stderr: stderr != nil}, files
}

// Events is a stream of changes.
type Events struct {
	// Known is how many events at the beginning tell of containers that there already were: type created, started or
	// stopped by their state, all with the Seq of the last change before.
	Known int

	s    *stream
	ch   chan Event
	quit chan struct{}
	once sync.Once
	err  error
}

// Events subscribes to changes. The first events tell of every container that there is. After them those of the types in but
// need not come: each is work for both sides.
func (c *Client) Events(ctx context.Context, but ...string) (*Events, error) {
	s, f, err := c.open(ctx, kindEvents, eventsCall{but})
	if err != nil {
		return nil, err
	}
	var snap snapshot
	if err := f.decode(&snap); err != nil || f.kind != kindSnapshot {
		f.closeFiles()
		s.uc.Close()
		return nil, fmt.Errorf("unexpected answer of kind %d: %w", f.kind, errdefs.ErrInternal)
	}
	e := &Events{Known: snap.Events, s: s, ch: make(chan Event, 64), quit: make(chan struct{})}
	go func() {
		defer close(s.done)
		defer close(e.ch)
		e.err = s.read(func(f *frame) bool {
			var ev Event
			if f.kind != kindEvent || f.decode(&ev) != nil {
				return true
			}
			select {
			case e.ch <- ev:
				return true
			case <-e.quit:
				return false
			}
		})
	}()
	return e, nil
}

// Next waits for the next event. ErrUnavailable when cri-monitor was lost, ErrResourceExhausted when it has cut this
// subscriber off because too many events waited for it; subscribe again then.
func (e *Events) Next(ctx context.Context) (Event, error) {
	select {
	case ev, ok := <-e.ch:
		if ok {
			return ev, nil
		}
		if e.err == nil {
			return Event{}, fmt.Errorf("closed: %w", errdefs.ErrAborted)
		}
		return Event{}, e.err
	case <-ctx.Done():
		return Event{}, ctx.Err()
	}
}

// Close ends the stream.
func (e *Events) Close() error {
	e.once.Do(func() { close(e.quit) })
	return e.s.close()
}
