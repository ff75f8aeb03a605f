// Package stdio moves the bytes of all containers: from their stdout, stderr and terminals to log files and
// attachments, and from attachments to their stdin.
//
// One Loop, which is one goroutine with one epoll set and one shared buffer, serves every container whose log is in one
// file system, so that a container costs a few hundred bytes here, not stacks and buffers. Everything it does is
// non-blocking but for what it asks of the log files: a reader of an attachment that is too slow is dropped, a file system
// that is full makes records wait in memory and then the container's own writes. While a file system does not answer at
// all, nothing is moved for those who log to it; who wants something of their Loop is told so after a while, and is not
// held up. The Loops of other file systems go on, and so does the one of containers without a log; see Loops.
package stdio

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/logs"
)

const (
	// readSize is the most that is read from one descriptor before the next one has its turn.
	readSize = 256 << 10
	// busyPipe is the size that a busy container's pipe gets; it bridges the time without a reader when this process
	// is replaced.
	busyPipe = 1 << 20
	// maxHeld is how many bytes of log records wait in memory, per container, before its output is left in the pipe.
	maxHeld = 1 << 20
	// heldReadSize is read at once while records wait: the shortest lines grow forty-fold in the log format.
	heldReadSize = 4 << 10
	// maxQueue is how many bytes wait for one stream of an attachment before it is dropped.
	maxQueue = 4 << 20
)

// Intervals of the loop; tests shorten them.
var (
	retryEvery = time.Second            // between two tries to write to a full file system
	ttyEvery   = 250 * time.Millisecond // between two looks at a terminal that nobody has open
	answerTime = 5 * time.Second        // that the loop may take before its callers give up
	lateTime   = 100 * time.Millisecond // the same, where a caller has given up and nothing has been done since
)

// errClosed is the answer of a Loop that was closed.
var errClosed = fmt.Errorf("stdio loop is closed: %w", errdefs.ErrUnavailable)

// errStuck tells an answer that is late from others.
var errStuck = errors.New("its file system has not answered")

// Loop serves the stdio of many containers.
type Loop struct {
	ep, wake int
	log      *slog.Logger
	done     chan struct{}
	paused   atomic.Bool
	serving  atomic.Pointer[Streams] // whose log may be being written now
	late     atomic.Bool             // a caller has waited for answerTime; nothing has been done since
	users    atomic.Int32            // Streams that were not closed

	number int    // in Loops
	dev    uint64 // the file system of its logs; 0: not known
	// reserved: for Streams of a former process, which may still be restored.
	reserved bool
	resumed  bool // it goes on with the journal of a former one

	mu     sync.Mutex
	calls  []func()
	closed bool

	// What follows belongs to the loop's goroutine.
	watches map[int32]*watch
	gen     int32
	stop    bool
	flushes bool // its file system has something to do when a descriptor is closed, and may hang then
	journal *journal
	buf     []byte       // the journal's
	records *logs.Buffer // nil until there is a log
	timers  map[timed]time.Time
}

// timed is something that wants to be called again at a time.
type timed interface{ expire() }

// newLoop starts a Loop. Close ends it.
func newLoop(log *slog.Logger) (*Loop, error) {
	j, err := newJournal()
	if err != nil {
		return nil, err
	}
	l, err := start(log, j)
	if err != nil {
		j.close()
	}
	return l, err
}

// resumeLoop starts a Loop with the journal of a former one. It owns the files, also on error.
func resumeLoop(log *slog.Logger, files []int) (*Loop, error) {
	j, err := mapJournal(files)
	if err != nil {
		closeAll(files...)
		return nil, err
	}
	if err = j.recover(); err == nil {
		var l *Loop
		if l, err = start(log, j); err == nil {
			l.resumed = true
			return l, nil
		}
	}
	j.close()
	return nil, err
}

func start(log *slog.Logger, j *journal) (*Loop, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(ep)
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	l := &Loop{
		ep: ep, wake: wake, log: log,
		done:    make(chan struct{}),
		watches: map[int32]*watch{},
		journal: j,
		buf:     j.buf(),
		timers:  map[timed]time.Time{},
	}
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(wake)}
	if err := unix.EpollCtl(ep, unix.EPOLL_CTL_ADD, wake, &ev); err != nil {
		unix.Close(ep)
		unix.Close(wake)
		return nil, fmt.Errorf("epoll: %w", err)
	}
	go l.run()
	return l, nil
}

// Close ends the loop; Streams that were not closed keep their descriptors.
func (l *Loop) Close() {
	if !l.post(func() { l.stop = true }) {
		return
	}
	select {
	case <-l.done:
	case <-time.After(answerTime):
		l.log.Error("the end of the output is not waited for", "err", l.stuck())
	}
}

// post queues f for the loop's goroutine. False when the loop is closed: f will not run.
func (l *Loop) post(f func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.calls = append(l.calls, f)
	if len(l.calls) == 1 {
		_, _ = unix.Write(l.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	}
	return true
}

// call runs f in the loop's goroutine. When ctx ends first, or the loop does not come to it for answerTime
// (ErrUnavailable), f still runs later.
func (l *Loop) call(ctx context.Context, f func() error) error {
	if l.paused.Load() {
		return f()
	}
	result := make(chan error, 1)
	if !l.post(func() { result <- f() }) {
		return errClosed
	}
	err, _ := l.answer(ctx, result)
	return err
}

// answer waits for the result of what was posted. Late: it is not there yet, and will come.
func (l *Loop) answer(ctx context.Context, result <-chan error) (err error, late bool) { //nolint:revive // late explains err
	patience := answerTime
	if l.late.Load() {
		patience = lateTime
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case err := <-result:
		return err, false
	case <-ctx.Done():
		return ctx.Err(), true
	case <-timer.C:
		l.late.Store(true)
		return l.stuck(), true
	}
}

// stuck says why there is no answer.
func (l *Loop) stuck() error {
	name := "a container log"
	if s := l.serving.Load(); s != nil {
		name = fmt.Sprintf("the log %s of container %s", s.logPath, s.id)
	}
	return fmt.Errorf("%s is being written: %w for %v: %w", name, errStuck, answerTime, errdefs.ErrUnavailable)
}

func (l *Loop) run() {
	defer close(l.done)
	events := make([]unix.EpollEvent, 128)
	for !l.stop {
		n, err := unix.EpollWait(l.ep, events, l.timeout())
		if err != nil && err != unix.EINTR {
			l.log.Error("container output can't be read any more", "err", err)
			break
		}
		if l.late.Load() {
			l.late.Store(false)
		}
		for _, ev := range events[:max(n, 0)] {
			if ev.Fd == int32(l.wake) {
				l.runCalls()
				continue
			}
			// An earlier event of this batch may have closed the descriptor, and its number be in use again.
			if w := l.watches[ev.Fd]; w != nil && w.gen == ev.Pad {
				w.h.ready(ev.Events)
			}
		}
		l.runTimers()
	}
	l.mu.Lock()
	l.closed = true
	calls := l.calls
	l.calls = nil
	l.mu.Unlock()
	for _, f := range calls {
		f()
	}
	unix.Close(l.ep)
	unix.Close(l.wake)
	l.journal.close()
}

// Pause stops the loop at a point where nothing is half done. Until resume is called, which must happen but for an
// execve(2), only Save may be called.
func (l *Loop) Pause() (resume func(), err error) {
	paused, again := make(chan struct{}), make(chan struct{})
	if !l.post(func() { close(paused); <-again }) {
		return nil, errClosed
	}
	select {
	case <-paused:
	case <-time.After(answerTime):
		close(again) // it does not stop when it comes to it
		return nil, l.stuck()
	}
	l.paused.Store(true)
	return func() { l.paused.Store(false); close(again) }, nil
}

func (l *Loop) runCalls() {
	var b [8]byte
	_, _ = unix.Read(l.wake, b[:])
	l.mu.Lock()
	calls := l.calls
	l.calls = nil
	l.mu.Unlock()
	for _, f := range calls {
		f()
	}
}

// timeout is what epoll_wait(2) may wait, in ms, until the next timer.
func (l *Loop) timeout() int {
	if len(l.timers) == 0 {
		return -1
	}
	next := time.Duration(1<<63 - 1)
	for _, at := range l.timers {
		next = min(next, time.Until(at))
	}
	return max(0, int((next+time.Millisecond-1)/time.Millisecond))
}

func (l *Loop) runTimers() {
	if len(l.timers) == 0 {
		return
	}
	now := time.Now()
	for t, at := range l.timers {
		if !now.Before(at) {
			delete(l.timers, t)
			t.expire()
		}
	}
}

// handler is told about readiness by the epoll events that are set.
type handler interface{ ready(events uint32) }

// watch is one descriptor in the epoll set. A watch with fd -1 is closed.
type watch struct {
	l     *Loop
	h     handler
	fd    int
	gen   int32
	armed bool
	mask  uint32
}

// arm asks for events; EPOLLHUP and EPOLLERR always come. EPERM: the file can't be polled and never blocks.
func (w *watch) arm(events uint32) error {
	if w.fd < 0 || w.armed && w.mask == events {
		return nil
	}
	op := unix.EPOLL_CTL_MOD
	if !w.armed {
		op = unix.EPOLL_CTL_ADD
		w.l.gen++
		w.gen = w.l.gen
	}
	ev := unix.EpollEvent{Events: events, Fd: int32(w.fd), Pad: w.gen}
	if err := unix.EpollCtl(w.l.ep, op, w.fd, &ev); err != nil {
		return fmt.Errorf("epoll: %w", err)
	}
	w.armed, w.mask = true, events
	w.l.watches[int32(w.fd)] = w
	return nil
}

// disarm takes the descriptor out of the set: with an empty mask it would still report a hang-up again and again.
func (w *watch) disarm() {
	if w.armed {
		_ = unix.EpollCtl(w.l.ep, unix.EPOLL_CTL_DEL, w.fd, nil)
		delete(w.l.watches, int32(w.fd))
		w.armed = false
	}
}

func (w *watch) close() {
	if w.fd >= 0 {
		w.disarm()
		unix.Close(w.fd)
		w.fd = -1
	}
}

// again tells that a read or write is only to be tried later.
func again(err error) bool { return errors.Is(err, unix.EAGAIN) }

// retryIntr repeats f while a signal interrupts it.
func retryIntr(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if err != unix.EINTR {
			return n, err
		}
	}
}
