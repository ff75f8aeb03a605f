package streaming

import "sync"

// group counts what must have ended before its owner does. Unlike with a sync.WaitGroup, something may want to begin
// while the owner waits already: it is refused.
type group struct {
	mu     sync.Mutex
	closed bool
	wg     sync.WaitGroup
}

// begin tells whether the caller may go on, and must call end.
func (g *group) begin() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.closed {
		g.wg.Add(1)
	}
	return !g.closed
}

func (g *group) end() { g.wg.Done() }

// close refuses newcomers and waits for the others.
func (g *group) close() {
	g.mu.Lock()
	g.closed = true
	g.mu.Unlock()
	g.wg.Wait()
}
