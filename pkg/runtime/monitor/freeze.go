package monitor

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

// freezer stops and restarts the goroutines that serve connections, each at a point from which it can go on.
type freezer struct {
	mu     sync.Mutex
	frozen bool
	begin  chan struct{} // closed when a freeze begins
	end    chan struct{} // closed when it has ended
	live   int           // goroutines that have not stopped
	idle   chan struct{} // closed when there is none, while a freeze waits for that
}

func (f *freezer) channel() chan struct{} {
	if f.begin == nil {
		f.begin, f.end = make(chan struct{}), make(chan struct{})
	}
	return f.begin
}

// enter counts n goroutines that stop when the returned channel is closed. False while frozen.
func (f *freezer) enter(n int) (<-chan struct{}, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.frozen {
		return nil, false
	}
	f.live += n
	return f.channel(), true
}

// leave is called by each of them when it stops.
func (f *freezer) leave() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.live--; f.live == 0 && f.idle != nil {
		close(f.idle)
		f.idle = nil
	}
}

// freeze makes all of them stop; idle is closed when they have.
func (f *freezer) freeze() (idle <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.channel())
	f.frozen = true
	ch := make(chan struct{})
	if f.live == 0 {
		close(ch)
	} else {
		f.idle = ch
	}
	return ch
}

func (f *freezer) thaw() {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.end)
	f.begin, f.end, f.idle, f.frozen = nil, nil, nil, false
}

// thawed is closed when the present freeze has ended.
func (f *freezer) thawed() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.frozen {
		ch := make(chan struct{})
		close(ch)
		return ch
	}
	return f.end
}

// start begins, or goes on, to serve the connection; while the server is frozen it does nothing.
func (c *conn) start() {
	c.life.Lock()
	defer c.life.Unlock()
	if c.live > 0 || c.over {
		return
	}
	frozen, ok := c.s.freezer.enter(2)
	if !ok {
		return
	}
	c.live = 2
	c.gate, c.frozen = &readGate{frozen: frozen}, frozen
	c.s.work.Add(2)
	go c.read(c.gate)
	go c.serve()
}

// stopped is called by both goroutines. When the second has stopped for a freeze that was given up meanwhile, the
// connection goes on at once.
func (c *conn) stopped(over bool) {
	c.life.Lock()
	c.live--
	c.over = c.over || over
	again := c.live == 0 && !c.over
	c.life.Unlock()
	c.s.freezer.leave()
	if again {
		c.start()
	}
	c.s.work.Done()
}

func (c *conn) interrupt() {
	c.life.Lock()
	defer c.life.Unlock()
	if c.gate != nil {
		c.gate.interrupt(c.c)
	}
}

// readGate lets a reader be stopped between two frames and nowhere else.
type readGate struct {
	frozen  <-chan struct{}
	mu      sync.Mutex
	waiting bool
}

// wait is called before the first byte of a frame is waited for, ready when that has come.
func (g *readGate) wait(c *net.UnixConn) error {
	if g == nil {
		return c.SetReadDeadline(time.Time{})
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-g.frozen:
		return errFrozen
	default:
	}
	g.waiting = true
	return c.SetReadDeadline(time.Time{})
}

func (g *readGate) ready(c *net.UnixConn) error {
	if g != nil {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.waiting = false
	}
	return c.SetReadDeadline(time.Now().Add(frameTime))
}

// stopped tells whether a wait has ended because of interrupt.
func (g *readGate) stopped() bool {
	if g == nil {
		return false
	}
	select {
	case <-g.frozen:
		return true
	default:
		return false
	}
}

func (g *readGate) interrupt(c *net.UnixConn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.waiting {
		_ = c.SetReadDeadline(time.Unix(1, 0))
	}
}

// freeze brings the server to a point where nothing is under way: requests that are being carried out are finished,
// those that wait and all that goes on for long is left where it is, children are no longer reaped, output is no longer
// read. thaw lets all that go on. When ctx ends first, nothing has changed.
func (s *Server) freeze(ctx context.Context) (thaw func(), err error) {
	undo := []func(){s.resume}
	thaw = func() {
		for i := len(undo) - 1; i >= 0; i-- {
			undo[i]()
		}
	}
	idle := s.freezer.freeze()
	_ = s.ln.SetDeadline(time.Unix(1, 0))
	for _, c := range s.connections() {
		c.interrupt()
	}
	select {
	case <-idle:
	case <-ctx.Done():
		thaw()
		return nil, fmt.Errorf("requests are still being carried out: %w: %w", ctx.Err(), errdefs.ErrUnavailable)
	}
	// A container's end may need further processes (an OCI runtime's kill), and these somebody who reaps them.
	for {
		if err := s.awaitExits(ctx); err != nil {
			thaw()
			return nil, err
		}
		s.cfg.Reaper.Pause()
		if s.ending() == nil {
			break
		}
		s.cfg.Reaper.Resume() // one has ended in between
	}
	undo = append(undo, s.cfg.Reaper.Resume)
	if store := s.keepers.store; store != nil {
		if err := store.flush(ctx); err != nil {
			thaw()
			return nil, err
		}
	}
	resume, err := s.loops.Pause()
	if err != nil {
		thaw()
		return nil, err
	}
	undo = append(undo, resume)
	return thaw, nil
}

// resume ends a freeze.
func (s *Server) resume() {
	s.freezer.thaw()
	_ = s.ln.SetDeadline(time.Time{})
	for _, c := range s.connections() {
		c.start()
	}
}

func (s *Server) connections() []*conn {
	s.mu.RLock()
	defer s.mu.RUnlock()
	all := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		all = append(all, c)
	}
	return all
}

// all returns the containers that were created.
func (s *Server) all() []*container {
	s.mu.RLock()
	defer s.mu.RUnlock()
	all := make([]*container, 0, len(s.containers))
	for _, c := range s.containers {
		if c.state.Load() != nil {
			all = append(all, c)
		}
	}
	return all
}

// awaitExits waits until the containers whose end is known have come to it.
func (s *Server) awaitExits(ctx context.Context) error {
	for c := s.ending(); c != nil; c = s.ending() {
		select {
		case <-c.stopped:
		case <-ctx.Done():
			return fmt.Errorf("container %s does not come to its end: %w: %w", c.id, ctx.Err(), errdefs.ErrUnavailable)
		}
	}
	return nil
}

// ending returns a container whose process was reaped, and whose end was not told yet; nil if there is none.
func (s *Server) ending() *container {
	for _, c := range s.all() {
		select {
		case <-c.ctr.Process().Child().Done():
		default:
			continue
		}
		select {
		case <-c.stopped:
		default:
			return c
		}
	}
	return nil
}
