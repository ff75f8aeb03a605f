package imagestore

import (
	"context"
	"sync"
)

// flights lets calls with one key share one run. The run ends early only when everybody who waits for it has gone.
type flights[T any] struct {
	mu sync.Mutex
	m  map[string]*flight[T]
}

type flight[T any] struct {
	done    chan struct{}
	cancel  context.CancelCauseFunc
	waiting int
	value   T
	err     error
}

// do joins the run for key or starts it with fn. joined tells that somebody else started it. fn's context ends with
// life, or when nobody waits any more, and keeps ctx's values.
func (g *flights[T]) do(ctx, life context.Context, running *sync.WaitGroup, key string, fn func(context.Context) (T, error)) (v T, joined bool, err error) {
	g.mu.Lock()
	f, joined := g.m[key]
	if !joined {
		if life.Err() != nil {
			g.mu.Unlock()
			return v, false, context.Cause(life)
		}
		fctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
		stop := context.AfterFunc(life, func() { cancel(context.Cause(life)) })
		f = &flight[T]{done: make(chan struct{}), cancel: cancel}
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
	g.mu.Lock()
	f.waiting--
	last := f.waiting == 0
	if last && g.m[key] == f {
		delete(g.m, key) // who comes now starts anew
		f.cancel(context.Cause(ctx))
	}
	g.mu.Unlock()
	if last {
		<-f.done // leave nothing running behind the caller's back
	}
	return v, joined, context.Cause(ctx)
}
