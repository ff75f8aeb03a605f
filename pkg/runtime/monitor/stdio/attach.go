package stdio

import (
	"context"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/logs"
)

// inputSize is how much of an attachment's input is read at once.
const inputSize = 32 << 10

// errSlow ends an attachment whose reader does not keep up.
var errSlow = fmt.Errorf("attachment dropped, more than %d MiB of output waited for its reader: %w", maxQueue>>20, errdefs.ErrResourceExhausted)

// Attachment is one client at a container's stdio. It gets output from now on.
type Attachment struct {
	s    *Streams
	done chan struct{}
	err  error

	// What follows belongs to the loop's goroutine.
	in   *attachIn
	outs [2]*attachOut
	over bool
}

// Attach connects a client. The descriptors (-1: none) are the Loop's from now on, also on error; they become
// non-blocking. ErrFailedPrecondition when the container has ended.
func (s *Streams) Attach(stdin, stdout, stderr int) (*Attachment, error) {
	a := &Attachment{s: s, done: make(chan struct{})}
	result := make(chan error, 1)
	if !s.l.post(func() { result <- a.start(stdin, stdout, stderr) }) {
		closeAll(stdin, stdout, stderr)
		return nil, errClosed
	}
	err, late := s.l.answer(context.Background(), result)
	if late {
		a.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("attach to %s: %w", s.id, err)
	}
	return a, nil
}

func closeAll(fds ...int) {
	for _, fd := range fds {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

func (a *Attachment) start(stdin, stdout, stderr int) error {
	s := a.s
	if s.stopped {
		closeAll(stdin, stdout, stderr)
		return fmt.Errorf("it has ended: %w", errdefs.ErrFailedPrecondition)
	}
	s.attachments = append(s.attachments, a)
	for i, fd := range []int{stdout, stderr} {
		if fd < 0 {
			continue
		}
		_ = unix.SetNonblock(fd, true)
		o := &attachOut{a: a}
		o.watch = watch{l: s.l, h: o, fd: fd}
		_ = o.arm(0) // to learn that the reader has gone; EPERM for a file that never blocks
		a.outs[i] = o
	}
	if stdin < 0 {
		return nil
	}
	_ = unix.SetNonblock(stdin, true)
	a.in = &attachIn{a: a}
	a.in.watch = watch{l: s.l, h: a.in, fd: stdin}
	if s.in == nil {
		a.closeInput()
		return nil
	}
	if err := a.in.arm(unix.EPOLLIN); err != nil {
		a.in.watch.close()
		a.in = nil
		a.end(err)
		return fmt.Errorf("stdin is no pipe, socket or terminal: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if len(s.in.pending) > 0 {
		a.in.disarm()
	}
	return nil
}

// Wait returns when the attachment is over: nil after the container has ended, or the client has gone, and all output
// was taken; ErrResourceExhausted after it was dropped for being slow.
func (a *Attachment) Wait(ctx context.Context) error {
	select {
	case <-a.done:
		return a.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Done is closed when the attachment is over.
func (a *Attachment) Done() <-chan struct{} { return a.done }

// Close ends the attachment; what waits for the client is thrown away.
func (a *Attachment) Close() {
	a.s.l.post(func() { a.drop(nil) })
}

func (a *Attachment) send(stream logs.Stream, p []byte) {
	if o := a.outs[stream]; o != nil {
		o.send(p)
	}
}

// end lets the client have what waits for it, and then the end of file.
func (a *Attachment) end(err error) {
	a.s.attachments = slices.DeleteFunc(a.s.attachments, func(b *Attachment) bool { return a == b })
	a.endInput()
	for _, o := range a.outs {
		if o != nil {
			o.ended = true
			o.flush()
		}
	}
	a.settle(err)
}

// drop ends the attachment at once.
func (a *Attachment) drop(err error) {
	for i, o := range a.outs {
		if o != nil {
			o.watch.close()
			a.outs[i] = nil
		}
	}
	a.end(err)
}

// settle ends the attachment when nothing is left that it could do.
func (a *Attachment) settle(err error) {
	if a.over || a.in != nil || a.outs[0] != nil || a.outs[1] != nil {
		return
	}
	a.over, a.err = true, err
	a.s.attachments = slices.DeleteFunc(a.s.attachments, func(b *Attachment) bool { return a == b })
	close(a.done)
}

// endInput is called when the client's input has come to its end, or can't come any more.
func (a *Attachment) endInput() {
	if a.in == nil {
		return
	}
	a.closeInput()
	if a.s.in != nil {
		a.s.in.attachEnded()
	}
}

// closeInput stops reading the client's input.
func (a *Attachment) closeInput() {
	if a.in != nil {
		a.in.watch.close()
		a.in = nil
	}
}

func (a *Attachment) resumeInput() {
	if a.in != nil {
		_ = a.in.arm(unix.EPOLLIN)
	}
}

// attachIn is a client's input.
type attachIn struct {
	watch
	a *Attachment
}

func (in *attachIn) ready(uint32) {
	s := in.a.s
	if s.in == nil {
		in.a.closeInput()
		in.a.settle(nil)
		return
	}
	if len(s.in.pending) > 0 { // the container must take that first
		in.disarm()
		return
	}
	buf := in.l.buf[:inputSize]
	n, err := retryIntr(func() (int, error) { return unix.Read(in.fd, buf) })
	switch {
	case n > 0:
		s.in.send(buf[:n])
	case again(err):
	default:
		in.a.endInput()
		in.a.settle(nil)
	}
}

// attachOut is a client's stdout or stderr.
type attachOut struct {
	watch
	a     *Attachment
	queue []byte
	ended bool // close when queue is written
}

func (o *attachOut) ready(events uint32) {
	if events&(unix.EPOLLERR|unix.EPOLLHUP) != 0 {
		o.gone()
		return
	}
	o.flush()
}

func (o *attachOut) send(p []byte) {
	if len(o.queue) == 0 {
		n, err := retryIntr(func() (int, error) { return unix.Write(o.fd, p) })
		if err != nil && !again(err) {
			o.gone()
			return
		}
		p = p[max(n, 0):]
	}
	if len(o.queue)+len(p) > maxQueue {
		o.a.drop(errSlow)
		return
	}
	if len(p) > 0 {
		o.queue = append(o.queue, p...)
		if o.arm(unix.EPOLLOUT) != nil {
			o.gone()
		}
	}
}

func (o *attachOut) flush() {
	for len(o.queue) > 0 {
		n, err := retryIntr(func() (int, error) { return unix.Write(o.fd, o.queue) })
		if again(err) || err == nil && n == 0 {
			return
		}
		if err != nil {
			o.gone()
			return
		}
		o.queue = o.queue[n:]
	}
	o.queue = nil
	if o.ended {
		o.gone()
	} else {
		_ = o.arm(0)
	}
}

// gone closes the stream: its reader has left, or has got everything.
func (o *attachOut) gone() {
	o.watch.close()
	for i := range o.a.outs {
		if o.a.outs[i] == o {
			o.a.outs[i] = nil
		}
	}
	o.a.settle(nil)
}
