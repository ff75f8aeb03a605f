package imagestore

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// flights lets calls with one key share one run. The run ends early only when everybody who waits for it has gone.
type flights[T any] struct {
	// patience is how long the last who goes waits for the run's end, so that nothing is left running behind his back; 0: until it
	// is there. A run that has not ended by then, since a file system does not answer, say, is not begun anew beside itself: who
	// comes waits for its end first. Those who go are told its stage.
	patience time.Duration

	mu sync.Mutex
	m  map[string]*flight[T]
}

type flight[T any] struct {
	done    chan struct{}
	cancel  context.CancelCauseFunc
	waiting int
	ending  bool // nobody waits for it any more
	begun   time.Time
	stage   *stage
	value   T
	err     error
}

// do joins the run for key or starts it with fn. joined tells that somebody else started it. fn's context ends with
// life, or when nobody waits any more, and keeps ctx's values; with patience it has a stage besides.
func (g *flights[T]) do(ctx, life context.Context, running *sync.WaitGroup, key string, fn func(context.Context) (T, error)) (v T, joined bool, err error) {
	g.mu.Lock()
	f, joined := g.m[key]
	for joined && f.ending {
		g.mu.Unlock()
		select {
		case <-f.done:
		case <-ctx.Done():
			return v, false, f.late(ctx, "the former try has not ended")
		}
		g.mu.Lock()
		f, joined = g.m[key]
	}
	if !joined {
		if life.Err() != nil {
			g.mu.Unlock()
			return v, false, context.Cause(life)
		}
		fctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
		stop := context.AfterFunc(life, func() { cancel(context.Cause(life)) })
		f = &flight[T]{done: make(chan struct{}), cancel: cancel, begun: time.Now()}
		if g.patience > 0 {
			f.stage = &stage{}
			fctx = context.WithValue(fctx, stageKey{}, f.stage)
		}
		if g.m == nil {
			g.m = map[string]*flight[T]{}
		}
		g.m[key] = f
		running.Add(1)
		go func() {
			defer running.Done()
			defer stop()
			f.value, f.err = fn(fctx)
			g.mu.Lock()
			if g.m[key] == f {
				delete(g.m, key)
			}
			g.mu.Unlock()
			cancel(nil)
			close(f.done)
		}()
	}
	f.waiting++
	g.mu.Unlock()

	select {
	case <-f.done:
		return f.value, joined, f.err
	case <-ctx.Done():
	}
	late := f.late(ctx, "")
	g.mu.Lock()
	f.waiting--
	last := f.waiting == 0
	if last && g.m[key] == f {
		if g.patience > 0 {
			f.ending = true
		} else {
			delete(g.m, key) // who comes now starts anew
		}
		f.cancel(context.Cause(ctx))
	}
	g.mu.Unlock()
	if last {
		f.settle(g.patience)
	}
	return v, joined, late
}

// settle waits for the run's end, up to patience if that is not 0.
func (f *flight[T]) settle(patience time.Duration) {
	if patience == 0 {
		<-f.done
		return
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-f.done:
	case <-timer.C:
	}
}

// late is the error of a caller whose time ran out.
func (f *flight[T]) late(ctx context.Context, why string) error {
	at := f.stage.String()
	if at == "" {
		return context.Cause(ctx)
	}
	if why != "" {
		why += ": "
	}
	return fmt.Errorf("%sstill at stage %q after %v: %w", why, at, time.Since(f.begun).Round(time.Millisecond), context.Cause(ctx))
}
