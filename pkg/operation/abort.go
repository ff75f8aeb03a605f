package operation

import (
	"context"
	"fmt"
)

// Abort ends the operation key with cause, if it runs, and waits until what it did is taken back; its callers get cause.
// An operation that has nothing left but its end may succeed all the same. When ctx ends first the error is of ctx's kind.
func (g *Group) Abort(ctx context.Context, key string, cause error) error {
	g.mu.Lock()
	c := g.calls[key]
	if c == nil || c.finished {
		g.mu.Unlock()
		return nil
	}
	c.cancel(cause)
	g.mu.Unlock()
	select {
	case <-c.done:
		return nil
	case <-ctx.Done():
		t := c.op.Timeline()
		return fmt.Errorf("%s: not ended yet, at stage %q: %w", key, t.At(), ctx.Err())
	}
}

// Active tells whether the operation key runs now.
func (g *Group) Active(key string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	c := g.calls[key]
	return c != nil && !c.finished
}
