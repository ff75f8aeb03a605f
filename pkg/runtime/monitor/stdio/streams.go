package stdio

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/logs"
)

// Config are one container's stdio, the monitor's ends. Descriptors pass to the Loop, which makes them non-blocking and
// closes them; -1 means none.
type Config struct {
	// ID names the container in log messages.
	ID string
	// Stdin is the write end of the container's stdin. StdinOnce closes it when the first attachment with input ends.
	Stdin     int
	StdinOnce bool
	// Stdout and Stderr are read ends.
	Stdout, Stderr int
	// Terminal is a pty master; then the three above are -1. TerminalInput lets attachments write to it.
	Terminal      int
	TerminalInput bool
	// Log takes the output; nil: it is thrown away.
	Log *logs.File
	// InputClosed, if it is set, is called when the container's stdin was closed. It must not block.
	InputClosed func()
}

// Streams are the stdio of one container in a Loop. All methods are safe for concurrent use.
type Streams struct {
	l       *Loop
	id      string
	logPath string // for messages

	// What follows belongs to the loop's goroutine.
	slot        int // in the journal; -1: none
	log         *logs.File
	inputClosed func()
	outs        []*output
	in          *input
	terminal    int // for resizing; owned by outs[0]
	attachments []*Attachment
	stopped     bool // the container's process has ended
	open        int  // outs not at their end
	blocked     bool // the log holds as much as it may, or is being reopened
	reopening   bool // the new file is not used yet
	closed      bool
	held        bool         // not to be read yet, see Loops.Begin
	saves       atomic.Int32 // asked for, and not carried out yet
	drained     chan struct{}
}

func (l *Loop) add(c Config) (*Streams, error) {
	s := &Streams{l: l, id: c.ID, log: c.Log, inputClosed: c.InputClosed, terminal: c.Terminal, drained: make(chan struct{})}
	if c.Log != nil {
		s.logPath = c.Log.Path()
	}
	result := make(chan error, 1)
	if !l.post(func() { s.slot = l.journal.alloc(); result <- s.start(c) }) {
		l.users.Add(-1)
		return nil, errClosed
	}
	err, late := l.answer(context.Background(), result)
	if late {
		l.post(s.close)
	}
	if err != nil {
		return nil, fmt.Errorf("stdio of %s: %w", c.ID, err)
	}
	return s, nil
}

func (s *Streams) start(c Config) error {
	add := func(fd int, stream logs.Stream, tty bool) {
		if fd >= 0 {
			_ = unix.SetNonblock(fd, true)
			o := &output{s: s, stream: stream, tty: tty}
			o.watch = watch{l: s.l, h: o, fd: fd}
			s.outs = append(s.outs, o)
		}
	}
	add(c.Terminal, logs.Stdout, true)
	add(c.Stdout, logs.Stdout, false)
	add(c.Stderr, logs.Stderr, false)
	s.open = len(s.outs)
	if s.log != nil && s.l.records == nil {
		s.l.records = logs.NewBuffer()
	}
	stdin := c.Stdin
	var err error
	if c.Terminal >= 0 && c.TerminalInput {
		stdin, err = unix.FcntlInt(uintptr(c.Terminal), unix.F_DUPFD_CLOEXEC, 3)
	}
	if err == nil && stdin >= 0 {
		_ = unix.SetNonblock(stdin, true)
		s.in = &input{s: s, once: c.StdinOnce}
		s.in.watch = watch{l: s.l, h: s.in, fd: stdin}
	}
	for _, o := range s.outs {
		if err == nil && !s.held {
			err = o.arm(unix.EPOLLIN)
		}
	}
	if err != nil {
		s.close()
		return err
	}
	if s.open == 0 {
		close(s.drained)
	}
	return nil
}

// begin reads what was held.
func (s *Streams) begin() {
	s.held = false
	for _, o := range s.outs {
		o.resume()
	}
}

// Stop is called when the container's process has ended. It returns when all output has come to its end and is written,
// or after patience: a stray process may hold the pipe open, the file system may be full. Output that comes later is
// still logged, until Close. Attachments get what has come and then the end of file.
func (s *Streams) Stop(ctx context.Context, patience time.Duration) {
	s.l.post(func() {
		s.stopped = true
		s.closeInput()
		for _, o := range s.outs {
			o.look()
		}
	})
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-s.drained:
	case <-timer.C:
	case <-ctx.Done():
	}
	_ = s.l.call(ctx, func() error {
		for _, o := range s.outs {
			o.endLine() // a stray process that goes on with the line writes a further part of it
		}
		s.endAttachments()
		return nil
	})
}

// Close gives everything up, now or when the loop gets on. Records that could not be written are reported to the log of
// the monitor.
func (s *Streams) Close() {
	_ = s.l.call(context.Background(), func() error { s.close(); return nil })
}

func (s *Streams) close() {
	if s.closed {
		return
	}
	s.closed, s.stopped = true, true
	s.reopened()
	for _, o := range s.outs {
		if !s.blocked {
			o.last()
		}
		o.watch.close()
		o.endLine()
	}
	s.outs = nil
	s.closeInput()
	s.endAttachments()
	delete(s.l.timers, timed(s))
	if s.log != nil {
		if err := s.log.Close(); err != nil {
			s.l.log.Error("container log is incomplete", "container", s.id, "err", err)
		}
		s.log = nil
	}
	s.l.journal.release(s.slot)
	s.slot = -1
	s.l.users.Add(-1)
}

// ReopenLog goes on in a new log file; on error the old one stays. Before anything is in the new one, keep is called,
// which gives its descriptor (Save) to those who keep it; meanwhile the output is left in its pipes.
func (s *Streams) ReopenLog(ctx context.Context, keep func()) error {
	err := s.l.call(ctx, func() error {
		switch {
		case s.log == nil:
			return nil
		case s.reopening:
			return fmt.Errorf("the log of container %s is being reopened: %w", s.id, errdefs.ErrUnavailable)
		}
		if err := s.log.Prepare(); err != nil {
			return err
		}
		s.reopening = true
		s.settleLog()
		return nil
	})
	if err != nil {
		if ctx.Err() != nil || errors.Is(err, errStuck) { // it may be done later
			s.l.post(s.reopened)
		}
		return err
	}
	keep()
	return s.l.call(context.WithoutCancel(ctx), func() error { s.reopened(); return nil })
}

// reopened goes on in the new file.
func (s *Streams) reopened() {
	if s.reopening && s.log != nil {
		s.log.Switch()
	}
	s.reopening = false
	s.settleLog()
}

// Resize sets the terminal's size in characters. ErrFailedPrecondition without a terminal.
func (s *Streams) Resize(ctx context.Context, width, height uint16) error {
	return s.l.call(ctx, func() error {
		if s.terminal < 0 || len(s.outs) == 0 || s.outs[0].fd < 0 {
			return fmt.Errorf("container %s has no terminal: %w", s.id, errdefs.ErrFailedPrecondition)
		}
		return unix.IoctlSetWinsize(s.terminal, unix.TIOCSWINSZ, &unix.Winsize{Row: height, Col: width})
	})
}

// deliver logs p and passes it to the attachments.
func (s *Streams) deliver(now time.Time, stream logs.Stream, p []byte) {
	if s.log != nil {
		_ = s.log.AppendAt(now, s.l.records, stream, p)
		if s.slot >= 0 {
			s.l.journal.commit(s.slot, stream, s.log)
		}
		s.settleLog()
	}
	for _, a := range slices.Clone(s.attachments) { // a drop changes the list
		a.send(stream, p)
	}
}

// settleLog reads on, or stops reading, according to what waits for the log, and has the log retried.
func (s *Streams) settleLog() {
	if s.log == nil {
		return
	}
	waiting := s.log.Waiting()
	if waiting > 0 {
		if _, ok := s.l.timers[s]; !ok {
			s.l.timers[s] = time.Now().Add(retryEvery)
			s.l.log.Warn("container log can't be written, its output waits", "container", s.id, "waiting", waiting, "err", s.log.Err())
		}
	}
	blocked := waiting >= maxHeld || s.reopening
	if blocked == s.blocked {
		return
	}
	s.blocked = blocked
	for _, o := range s.outs {
		if blocked {
			o.disarm()
		} else {
			o.resume()
		}
	}
}

// expire tries again to write what waits for the log.
func (s *Streams) expire() {
	if s.log == nil {
		return
	}
	s.l.serving.Store(s)
	if err := s.log.Retry(); err != nil {
		s.l.timers[s] = time.Now().Add(retryEvery)
	} else {
		s.l.log.Info("container log is written again", "container", s.id)
	}
	s.settleLog()
}

// outputEnded is called once for each stream.
func (s *Streams) outputEnded() {
	s.open--
	if s.open == 0 {
		close(s.drained)
	}
}

func (s *Streams) endAttachments() {
	for _, a := range slices.Clone(s.attachments) {
		a.end(nil)
	}
}
