// Package operation runs the server's mutating calls as operations: named by their object, on a deadline of their own,
// joined by a second caller instead of refused, taken back when they fail.
//
// kubelet gives up on a call after a while and calls again. Tied to the call, the work would be cancelled half way, or the
// retry would find the name taken. So a Group runs the work apart from the call: a caller that comes with the same key
// while it runs waits for the same result, a caller that goes away leaves it running, and the result of an operation that
// nobody waited for any more is kept for the retry. An operation lives in memory only; what it makes is on record, and a
// start after a crash takes back what was half made.
//
// An operation tells its stages (Op.Stage), so that an error says where it happened and the timeline can be shown, and
// how to take back each thing it made (Op.Undo).
package operation

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

// Options tune a Group; the zero value is good.
type Options struct {
	// Log gets the stack of a panic and the result of operations nobody waits for. Default: slog.Default().
	Log *slog.Logger
	// Keep is how long a result waits for a retry to claim it. Default: 5 minutes, which is more than kubelet's longest
	// back-off. Less than 0: it does not, as it should be for work that does nothing when it is done again.
	Keep time.Duration
	// Parallel: an operation does things side by side, or goes on to the next when one has failed, so the stage begun last is not
	// always where it failed, and is not put before the error, which must say so itself.
	Parallel bool
	// UndoTimeout is the deadline of each undo step. Default: 30 s.
	UndoTimeout time.Duration
	// Done is called after each operation, before its callers get the result. It must not block.
	Done func(key string, t Timeline, err error)
}

// Group holds the running operations and the results not yet claimed. Safe for concurrent use.
type Group struct {
	o Options

	mu      sync.Mutex
	calls   map[string]*call
	closed  bool
	running int
	idle    chan struct{} // closed when running falls to 0; made anew by each Wait that needs it
}

// call is one operation and its callers.
type call struct {
	op     *Op
	cancel context.CancelCauseFunc
	done   chan struct{} // closed after value and err are set

	value any
	err   error

	// Guarded by Group.mu.
	waiters  int
	claimed  bool
	finished bool
	expiry   *time.Timer
}

// NewGroup returns an empty Group.
func NewGroup(o Options) *Group {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Keep == 0 {
		o.Keep = 5 * time.Minute
	}
	if o.UndoTimeout == 0 {
		o.UndoTimeout = 30 * time.Second
	}
	return &Group{o: o, calls: map[string]*call{}}
}

// Do runs fn as the operation key, or joins the one that runs, or returns the result of one that ended unheard. fn's
// context keeps ctx's values but not its end: it is over after timeout (0: never) or when the Group is cancelled. Two
// calls with one key must mean the same work and the same T; a key is best "verb object", such as "run ns/name/uid/0".
//
// An error of fn is returned as "stage: …" (but see Options.Parallel) and keeps its errdefs kind; before that, fn's undo steps
// have run. When ctx ends first, Do returns ctx's error, which says what the operation is at, and the operation goes on.
func Do[T any](ctx context.Context, g *Group, key string, timeout time.Duration, fn func(ctx context.Context, op *Op) (T, error)) (T, error) {
	var zero T
	c, err := g.join(ctx, key, timeout, func(ctx context.Context, op *Op) (any, error) { return fn(ctx, op) })
	if err != nil {
		return zero, err
	}
	select {
	case <-c.done:
	case <-ctx.Done():
	}
	if !g.leave(ctx, c) {
		return zero, gone(ctx, c.op)
	}
	if c.err != nil {
		return zero, c.err
	}
	v, ok := c.value.(T)
	if !ok && c.value != nil { // nil is a legal value of an interface type T
		return zero, fmt.Errorf("%s: the operation returned %T, the caller wants %T: %w", key, c.value, zero, errdefs.ErrInternal)
	}
	return v, nil
}

// gone is the error of a caller whose time ran out.
func gone(ctx context.Context, op *Op) error {
	t := op.Timeline()
	if !t.Running {
		return fmt.Errorf("%s: ended too late for this call: repeat it: %w", op.key, ctx.Err())
	}
	return fmt.Errorf("%s: still at stage %q after %v: it goes on, and a retry waits for it: %w",
		op.key, t.At(), t.Total.Round(time.Millisecond), ctx.Err())
}

// join finds or starts the operation and counts the caller in.
func (g *Group) join(ctx context.Context, key string, timeout time.Duration, fn func(context.Context, *Op) (any, error)) (*call, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("%s: not started: %w", key, err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	// One that ended may still be there because a caller has not fetched its result yet.
	if c, ok := g.calls[key]; ok && (!c.finished || g.o.Keep > 0) {
		c.waiters++
		return c, nil
	}
	if g.closed {
		return nil, fmt.Errorf("%s: the server is stopping: %w", key, errdefs.ErrUnavailable)
	}
	octx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.CancelFunc(func() {})
	if timeout > 0 {
		octx, stop = context.WithTimeout(octx, timeout)
	}
	c := &call{op: newOp(key, timeout), cancel: cancel, done: make(chan struct{}), waiters: 1}
	g.calls[key] = c
	g.running++
	go func() {
		defer stop()
		defer cancel(nil)
		defer g.finish(c)
		GrowStack()
		g.run(context.WithValue(octx, opKey{}, c.op), c, fn)
	}()
	return c, nil
}

// leave counts the caller out and tells whether it takes the result with it.
func (g *Group) leave(ctx context.Context, c *call) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	c.waiters--
	// A caller whose time ran out at the same moment can't hand the result on, so it is left for the retry.
	if c.finished && ctx.Err() == nil {
		c.claimed = true
	}
	g.settle(c)
	return c.finished && ctx.Err() == nil
}

// finish publishes the result.
func (g *Group) finish(c *call) {
	if g.o.Done != nil {
		g.o.Done(c.op.key, c.op.Timeline(), c.err)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	c.finished = true
	if c.waiters == 0 {
		g.o.Log.Info("operation ended after its callers had gone", "operation", c.op.key, "took", c.op.Timeline().Total, "error", c.err)
	}
	g.settle(c)
	close(c.done)
	if g.running--; g.running == 0 && g.idle != nil {
		close(g.idle)
		g.idle = nil
	}
}

// settle drops a finished operation once somebody took its result, and else keeps it for a while. g.mu is held.
func (g *Group) settle(c *call) {
	if !c.finished || c.waiters > 0 || g.calls[c.op.key] != c {
		return
	}
	if c.claimed || g.o.Keep < 0 {
		if c.expiry != nil {
			c.expiry.Stop()
		}
		delete(g.calls, c.op.key)
		return
	}
	if c.expiry == nil {
		c.expiry = time.AfterFunc(g.o.Keep, func() {
			g.mu.Lock()
			defer g.mu.Unlock()
			if g.calls[c.op.key] == c && c.waiters == 0 {
				delete(g.calls, c.op.key)
			}
		})
	}
}

// run calls fn and concludes with what it returned. A panic, or a runtime.Goexit, of fn takes neither the server nor the
// callers with it.
func (g *Group) run(ctx context.Context, c *call, fn func(context.Context, *Op) (any, error)) {
	err := fmt.Errorf("the operation's goroutine ended: %w", errdefs.ErrInternal)
	var v any
	defer func() {
		if r := recover(); r != nil {
			g.o.Log.Error("panic in operation", "operation", c.op.key, "panic", r, "stack", string(debug.Stack()))
			v, err = nil, fmt.Errorf("panic: %v: %w", r, errdefs.ErrInternal)
		}
		c.value, c.err = g.conclude(ctx, c.op, v, err)
	}()
	v, err = fn(ctx, c.op)
}

// conclude names the stage of a failure and undoes.
func (g *Group) conclude(ctx context.Context, op *Op, v any, err error) (any, error) {
	if err == nil {
		op.end("")
		return v, nil
	}
	stage, _ := op.Current()
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() != nil {
		err = fmt.Errorf("the operation's %v are over: %w", op.timeout, err)
	} else if cause := context.Cause(ctx); errors.Is(err, context.Canceled) && cause != nil && !errors.Is(err, cause) {
		err = fmt.Errorf("%w (%v)", cause, err)
	}
	if stage != "" && !g.o.Parallel {
		err = fmt.Errorf("%s: %w", stage, err)
	}
	op.end(err.Error())
	if uerr := op.undo(ctx, g.o.UndoTimeout, g.o.Log); uerr != nil {
		err = fmt.Errorf("%w (undo: %v)", err, uerr)
	}
	return nil, err
}

// Forget drops the kept result of key, if there is one: the object it speaks of has changed since.
func (g *Group) Forget(key string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if c, ok := g.calls[key]; ok && c.finished {
		if c.expiry != nil {
			c.expiry.Stop()
		}
		delete(g.calls, key)
	}
}

// Running are the operations not yet ended, ordered by key.
func (g *Group) Running() []Timeline {
	g.mu.Lock()
	defer g.mu.Unlock()
	var list []Timeline
	for _, c := range g.calls {
		if !c.finished {
			list = append(list, c.op.Timeline())
		}
	}
	slices.SortFunc(list, func(a, b Timeline) int { return strings.Compare(a.Key, b.Key) })
	return list
}

// Wait refuses new operations from now on (errdefs.ErrUnavailable; running ones can still be joined) and waits until none
// runs. When ctx ends first its error names those that still run.
func (g *Group) Wait(ctx context.Context) error {
	g.mu.Lock()
	g.closed = true
	if g.running == 0 {
		g.mu.Unlock()
		return nil
	}
	if g.idle == nil {
		g.idle = make(chan struct{})
	}
	idle := g.idle
	g.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
	}
	var names []string
	for _, t := range g.Running() {
		names = append(names, fmt.Sprintf("%s (stage %q)", t.Key, t.At()))
	}
	return fmt.Errorf("operations still running: %s: %w", strings.Join(names, ", "), ctx.Err())
}

// Cancel ends the contexts of all running operations, so that they fail and undo what they did. Wait waits for that.
func (g *Group) Cancel() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, c := range g.calls {
		c.cancel(errStopping)
	}
}

var errStopping = fmt.Errorf("the server is stopping: %w", errdefs.ErrUnavailable)
