package stdio

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/quickjson"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/logs"
)

// Saved are the streams of one container as Restore needs them in another process. What a process that died suddenly
// would have lost with it is in the journal.
type Saved struct {
	Slot          int        `json:"slot"` // in the journals, see Loops.Unfinished
	Log           logs.State `json:"log,omitzero"`
	StdinOnce     bool       `json:"stdin_once,omitempty"`
	TerminalInput bool       `json:"terminal_input,omitempty"`

	// What follows is saved while the Loop is paused only.
	Stopped bool   `json:"stopped,omitempty"`
	Pending []byte `json:"pending,omitempty"` // input that the container has not taken
	Closing bool   `json:"closing,omitempty"` // stdin is closed after it
}

// AppendJSON appends what json.Marshal makes of it.
func (s *Saved) AppendJSON(b []byte) []byte {
	b = quickjson.Int(quickjson.Key(append(b, '{'), "slot"), s.Slot)
	if !s.Log.IsZero() {
		b = s.Log.AppendJSON(quickjson.Key(b, "log"))
	}
	if s.StdinOnce {
		b = quickjson.Bool(quickjson.Key(b, "stdin_once"), true)
	}
	if s.TerminalInput {
		b = quickjson.Bool(quickjson.Key(b, "terminal_input"), true)
	}
	if s.Stopped {
		b = quickjson.Bool(quickjson.Key(b, "stopped"), true)
	}
	if len(s.Pending) > 0 {
		b = quickjson.Bytes(quickjson.Key(b, "pending"), s.Pending)
	}
	if s.Closing {
		b = quickjson.Bool(quickjson.Key(b, "closing"), true)
	}
	return append(b, '}')
}

// Files are the descriptors of a Streams; -1: none.
type Files struct{ Stdin, Stdout, Stderr, Terminal, Log int }

// NoFiles is where one begins.
var NoFiles = Files{-1, -1, -1, -1, -1}

// Save describes the streams. While the Loop is paused the files stay theirs; else they are duplicates, which the
// caller closes.
func (s *Streams) Save(ctx context.Context) (v Saved, f Files, err error) {
	if s.l.paused.Load() {
		v, f = s.save()
		return v, f, nil
	}
	if s.saves.Load() >= maxSaves { // they would all wait for the same
		return Saved{}, NoFiles, s.l.stuck()
	}
	type saved struct {
		v Saved
		f Files
	}
	result := make(chan saved, 1)
	var decided atomic.Bool // who is first: the caller's leaving, or the duplicates, which are nobody's then
	s.saves.Add(1)
	err = s.l.call(ctx, func() error {
		defer s.saves.Add(-1)
		if decided.Load() {
			return nil
		}
		v, f := s.save()
		if err := f.dup(s.l.flushes); err != nil {
			return err
		}
		if !decided.CompareAndSwap(false, true) {
			closeAll(f.Stdin, f.Stdout, f.Stderr, f.Terminal, f.Log)
			return nil
		}
		result <- saved{v, f}
		return nil
	})
	if errors.Is(err, errClosed) {
		s.saves.Add(-1)
	}
	if err != nil && decided.CompareAndSwap(false, true) {
		return Saved{}, NoFiles, err
	}
	r := <-result
	return r.v, r.f, nil
}

// maxSaves is how many may wait for a Loop that does not come to it.
const maxSaves = 2

// dup duplicates the files. With flushes the log becomes one that can only be opened anew: whoever closes another, as
// each process does that ends or executes a program, has to wait for its file system.
func (f *Files) dup(flushes bool) error {
	all := []*int{&f.Stdin, &f.Stdout, &f.Stderr, &f.Terminal, &f.Log}
	for i, at := range all {
		if *at < 0 {
			continue
		}
		var fd int
		var err error
		if at == &f.Log && flushes {
			fd, err = logs.Handle(*at)
		} else {
			fd, err = unix.FcntlInt(uintptr(*at), unix.F_DUPFD_CLOEXEC, 3)
		}
		if err != nil {
			for _, at := range all[:i] {
				closeAll(*at)
			}
			return fmt.Errorf("duplicate: %w", err)
		}
		*at = fd
	}
	return nil
}

func (s *Streams) save() (Saved, Files) {
	v, f := Saved{Slot: s.slot}, NoFiles
	if s.slot >= 0 {
		v.Slot += s.l.number * maxSlots
	}
	if s.log != nil {
		f.Log = s.log.FD()
		v.Log = s.log.State()
		if !s.l.paused.Load() { // the journal has it
			v.Log = logs.State{Dir: v.Log.Dir, Path: v.Log.Path}
		}
	}
	for _, o := range s.outs {
		switch {
		case o.tty:
			f.Terminal = o.fd
		case o.stream == logs.Stdout:
			f.Stdout = o.fd
		default:
			f.Stderr = o.fd
		}
	}
	if s.in != nil {
		v.StdinOnce = s.in.once
		if v.TerminalInput = f.Terminal >= 0; !v.TerminalInput {
			f.Stdin = s.in.fd
		}
	}
	if s.l.paused.Load() {
		v.Stopped = s.stopped
		if s.in != nil {
			v.Pending, v.Closing = s.in.pending, s.in.closing
		}
	}
	return v, f
}

func (l *Loop) restore(id string, v Saved, f Files, died, hold bool, inputClosed func()) (*Streams, error) {
	s := &Streams{l: l, id: id, slot: -1, held: hold, terminal: f.Terminal, inputClosed: inputClosed, drained: make(chan struct{})}
	s.logPath = filepath.Join(v.Log.Dir, v.Log.Path)
	if v.Slot < maxSlots {
		s.slot = v.Slot // its mark can be read before the loop comes to it
	}
	result := make(chan error, 1)
	var unawaited atomic.Bool
	if !l.post(func() {
		err := s.restore(v, f, died)
		if err != nil && unawaited.Load() {
			l.log.Error("container output can't be read any more", "container", id, "err", err)
		}
		result <- err
	}) {
		l.users.Add(-1)
		closeAll(f.Stdin, f.Stdout, f.Stderr, f.Terminal, f.Log)
		return nil, errClosed
	}
	err, late := l.answer(context.Background(), result)
	if late {
		unawaited.Store(true)
		l.log.Error("the output of a container waits", "container", id, "err", err)
		return s, nil
	}
	if err != nil {
		return nil, fmt.Errorf("stdio of %s: %w", id, err)
	}
	return s, nil
}

func (s *Streams) restore(v Saved, f Files, died bool) error {
	j := s.l.journal
	if v.Slot >= 0 {
		if err := j.claim(v.Slot); err != nil {
			s.l.log.Error("container log may lack a part of a line", "container", s.id, "err", err)
			s.slot = j.alloc()
			died = false
		}
	}
	if f.Log >= 0 {
		if died && s.slot >= 0 {
			j.state(s.slot, &v.Log)
		}
		s.log = logs.Resume(f.Log, v.Log)
		if died {
			if s.l.records == nil {
				s.l.records = logs.NewBuffer()
			}
			j.redo(s.slot, s.log, s.l.records)
		}
	}
	if err := s.start(Config{
		ID: s.id, Stdin: f.Stdin, StdinOnce: v.StdinOnce, Stdout: f.Stdout, Stderr: f.Stderr, Terminal: f.Terminal,
		TerminalInput: v.TerminalInput, Log: s.log,
	}); err != nil {
		return err
	}
	s.stopped = v.Stopped
	if s.in != nil && len(v.Pending) > 0 {
		s.in.closing = v.Closing
		s.in.send(v.Pending)
	}
	s.settleLog()
	return nil
}

// SetMark leaves a number in the journal, which outlives this process at once: see Mark.
func (s *Streams) SetMark(m uint32) {
	if s.slot >= 0 {
		s.l.journal.slot(s.slot).mark.Store(m)
	}
}

// Mark is what SetMark has left, also by a process that has died since.
func (s *Streams) Mark() uint32 {
	if s.slot < 0 {
		return 0
	}
	return s.l.journal.slot(s.slot).mark.Load()
}

// SavedAttachment is an Attachment as Reattach needs it.
type SavedAttachment struct {
	Queue   [2][]byte `json:"queue,omitempty"`   // waits for the client, per stream
	Ended   [2]bool   `json:"ended,omitempty"`   // nothing comes behind it
	Live    bool      `json:"live,omitempty"`    // gets what the container writes
	Over    bool      `json:"over,omitempty"`    // there is only its result left
	Dropped bool      `json:"dropped,omitempty"` // which is that it was too slow
}

// Save describes an attachment while the Loop is paused, with its stdin, stdout and stderr, which stay its own.
func (a *Attachment) Save() (SavedAttachment, [3]int) {
	v, f := SavedAttachment{Over: a.over, Dropped: a.err != nil}, [3]int{-1, -1, -1}
	v.Live = slices.Contains(a.s.attachments, a)
	if a.in != nil {
		f[0] = a.in.fd
	}
	for i, o := range a.outs {
		if o != nil {
			v.Queue[i], v.Ended[i], f[1+i] = o.queue, o.ended, o.fd
		}
	}
	return v, f
}

// Reattach goes on with an attachment that another process has saved. The files are the Loop's from now on.
func (s *Streams) Reattach(v SavedAttachment, f [3]int) (*Attachment, error) {
	a := &Attachment{s: s, done: make(chan struct{})}
	result := make(chan error, 1)
	if !s.l.post(func() { a.resume(v, f); result <- nil }) {
		closeAll(f[:]...)
		return nil, errClosed
	}
	err, late := s.l.answer(context.Background(), result)
	if late {
		a.Close()
	}
	return a, err
}

func (a *Attachment) resume(v SavedAttachment, f [3]int) {
	var result error
	if v.Dropped {
		result = errSlow
	}
	if v.Live {
		a.s.attachments = append(a.s.attachments, a)
	}
	for i, fd := range f[1:] {
		if fd < 0 {
			continue
		}
		o := &attachOut{a: a, queue: bytes.Clone(v.Queue[i]), ended: v.Ended[i]}
		o.watch = watch{l: a.s.l, h: o, fd: fd}
		a.outs[i] = o
	}
	if f[0] >= 0 {
		a.in = &attachIn{a: a}
		a.in.watch = watch{l: a.s.l, h: a.in, fd: f[0]}
		switch {
		case a.s.in == nil:
			a.closeInput()
		case len(a.s.in.pending) == 0:
			_ = a.in.arm(unix.EPOLLIN)
		}
	}
	for _, o := range a.outs {
		if o == nil {
			continue
		}
		events := uint32(0)
		if len(o.queue) > 0 {
			events = unix.EPOLLOUT
		}
		_ = o.arm(events) // EPERM for a file that never blocks
		if len(o.queue) > 0 || o.ended {
			o.flush()
		}
	}
	a.settle(result)
}
