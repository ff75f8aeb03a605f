package operation

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"time"
)

// Op is a running operation as its function sees it. Its methods are safe for concurrent use, and do nothing on nil, so
// that code can tell its stages whether it runs in an operation or not.
type Op struct {
	key     string
	timeout time.Duration
	begin   time.Time

	mu     sync.Mutex
	stages []Stage
	parts  []Stage
	undos  []undo
	open   bool // the last stage has not ended
	ended  time.Duration
	over   bool
	err    string
}

type undo struct {
	name string
	fn   func(context.Context) error
}

// Stage is one step of an operation. Times are in ns of the monotonic clock, from the operation's begin.
type Stage struct {
	Name     string        `json:"name"`
	Start    time.Duration `json:"start_ns"`
	Duration time.Duration `json:"duration_ns"`
}

// Timeline tells an operation's life so far.
type Timeline struct {
	Key   string    `json:"key"`
	Begin time.Time `json:"begin"` // wall clock
	// Total is the time from begin to end, or to now while Running.
	Total   time.Duration `json:"total_ns"`
	Running bool          `json:"running,omitempty"`
	Stages  []Stage       `json:"stages,omitempty"`
	// Parts are what was done within stages, some of it at the same time; ordered by their ends.
	Parts []Stage `json:"parts,omitempty"`
	Error string  `json:"error,omitempty"`
}

// At is the name of the last stage, "" when there is none.
func (t Timeline) At() string {
	if len(t.Stages) == 0 {
		return ""
	}
	return t.Stages[len(t.Stages)-1].Name
}

type opKey struct{}

// FromContext returns the operation that ctx belongs to, nil if none.
func FromContext(ctx context.Context) *Op {
	op, _ := ctx.Value(opKey{}).(*Op)
	return op
}

func newOp(key string, timeout time.Duration) *Op {
	return &Op{key: key, timeout: timeout, begin: time.Now()}
}

// Key is the operation's name.
func (o *Op) Key() string {
	if o == nil {
		return ""
	}
	return o.key
}

// Stage ends the current stage and begins the next.
func (o *Op) Stage(name string) {
	if o == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closeStage()
	o.stages = append(o.stages, Stage{Name: name, Start: time.Since(o.begin)})
	o.open = true
}

// Part begins a part of the current stage, beside others perhaps, which ends when end is called. One that is never ended is
// not told.
func (o *Op) Part(name string) (end func()) {
	if o == nil {
		return func() {}
	}
	start := time.Since(o.begin)
	return func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.parts = append(o.parts, Stage{Name: name, Start: start, Duration: time.Since(o.begin) - start})
	}
}

// Undo puts fn on the stack of what takes back the work so far. When the operation fails, or panics, the stack is run
// from the top, each step with a deadline and a context that outlives the operation's. name is for the error. A step must
// be idempotent, and must not mind that what it removes is gone.
func (o *Op) Undo(name string, fn func(context.Context) error) {
	if o == nil {
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.undos = append(o.undos, undo{name, fn})
}

// Current is the stage the operation is at, and for how long.
func (o *Op) Current() (stage string, since time.Duration) {
	if o == nil {
		return "", 0
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.stages) == 0 {
		return "", time.Since(o.begin)
	}
	s := o.stages[len(o.stages)-1]
	return s.Name, time.Since(o.begin) - s.Start
}

// Timeline is a copy.
func (o *Op) Timeline() Timeline {
	if o == nil {
		return Timeline{}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	t := Timeline{Key: o.key, Begin: o.begin.Round(0), Total: o.ended, Running: !o.over, Error: o.err}
	t.Stages, t.Parts = append(t.Stages, o.stages...), append(t.Parts, o.parts...)
	if !o.over {
		t.Total = time.Since(o.begin)
	}
	if o.open {
		s := &t.Stages[len(t.Stages)-1]
		s.Duration = t.Total - s.Start
	}
	return t
}

// end closes the last stage and the timeline.
func (o *Op) end(reason string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closeStage()
	o.err = reason
	if reason == "" || len(o.undos) == 0 {
		o.over, o.ended = true, time.Since(o.begin)
	}
}

func (o *Op) closeStage() {
	if o.open {
		s := &o.stages[len(o.stages)-1]
		s.Duration = time.Since(o.begin) - s.Start
		o.open = false
	}
}

// undo runs the stack; each step has its own deadline, so that one that hangs does not starve the rest.
func (o *Op) undo(ctx context.Context, timeout time.Duration, log *slog.Logger) error {
	o.mu.Lock()
	steps := o.undos
	o.mu.Unlock()
	if len(steps) == 0 {
		return nil
	}
	o.Stage("undo")
	var errs []error
	for i := len(steps) - 1; i >= 0; i-- {
		if err := o.step(ctx, timeout, steps[i], log); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", steps[i].name, err))
		}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closeStage()
	o.over, o.ended = true, time.Since(o.begin)
	return errors.Join(errs...)
}

func (o *Op) step(ctx context.Context, timeout time.Duration, u undo, log *slog.Logger) (err error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	defer func() {
		if r := recover(); r != nil {
			log.Error("panic in undo", "operation", o.key, "step", u.name, "panic", r, "stack", string(debug.Stack()))
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	return u.fn(ctx)
}
