package monitor

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// maxQueued is how many events wait for a subscriber before it is cut off.
const maxQueued = 8192

// events passes changes on to subscribers and counts them.
type events struct {
	mu   sync.Mutex
	seq  uint64
	subs map[*subscriber]struct{}
}

// subscriber is one Events connection.
type subscriber struct {
	wake  chan struct{} // one slot: there is something in queue, or cut is set
	queue []Event       // guarded by events.mu, as is cut
	cut   bool
	but   []string // the types of events that it does not want
}

// publish calls store, which makes the state visible, and tells the subscribers; both as one step for subscribe. An
// empty event is not told.
func (e *events) publish(event string, st State, store func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	store()
	if event == "" {
		return
	}
	e.seq++
	for sub := range e.subs {
		if slices.Contains(sub.but, event) {
			continue
		}
		if len(sub.queue) >= maxQueued {
			sub.cut, sub.queue = true, nil
			delete(e.subs, sub)
		} else {
			sub.queue = append(sub.queue, Event{e.seq, event, st})
		}
		select {
		case sub.wake <- struct{}{}:
		default:
		}
	}
}

// last is the number of the last change.
func (e *events) last() uint64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.seq
}

// subscribe begins with one event for each state that list returns, all with the number of the last change.
// After them come all but those of some types.
func (e *events) subscribe(list func() []State, but []string) (*subscriber, int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	sub := &subscriber{wake: make(chan struct{}, 1), but: but}
	names := map[Status]string{Created: "created", Running: "started", Stopped: "stopped"}
	for _, st := range list() {
		sub.queue = append(sub.queue, Event{e.seq, names[st.Status], st})
	}
	if e.subs == nil {
		e.subs = map[*subscriber]struct{}{}
	}
	e.subs[sub] = struct{}{}
	sub.wake <- struct{}{}
	return sub, len(sub.queue)
}

// resume goes on with the subscription of a former process.
func (e *events) resume(queue []Event, cut bool, but []string) *subscriber {
	e.mu.Lock()
	defer e.mu.Unlock()
	sub := &subscriber{wake: make(chan struct{}, 1), queue: queue, cut: cut, but: but}
	if e.subs == nil {
		e.subs = map[*subscriber]struct{}{}
	}
	if !cut {
		e.subs[sub] = struct{}{}
	}
	sub.wake <- struct{}{}
	return sub
}

func (e *events) unsubscribe(sub *subscriber) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.subs, sub)
}

// take returns what waits for sub; false when it was cut off.
func (e *events) take(sub *subscriber) ([]Event, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	q := slices.Clip(sub.queue)
	sub.queue = nil
	return q, !sub.cut
}

// streamEvents subscribes; the connection carries events until it is closed.
func (c *conn) streamEvents(f *frame) error {
	var call eventsCall
	if len(f.body) > 0 {
		if err := f.decode(&call); err != nil {
			return c.fail(f.id, err)
		}
	}
	sub, n := c.s.events.subscribe(c.s.list, call.But)
	c.task = &eventTask{id: f.id, sub: sub}
	if err := c.write(kindSnapshot, f.id, snapshot{n}); err != nil {
		c.cancel()
	}
	return nil
}

// eventTask is a subscription with its client.
type eventTask struct {
	id     uint64 // of the request
	sub    *subscriber
	unsent []Event // taken from sub
}

func (t *eventTask) run(c *conn) error {
	err := t.stream(c)
	if err != errFrozen {
		c.s.events.unsubscribe(t.sub)
	}
	return err
}

func (t *eventTask) stream(c *conn) error {
	for {
		for len(t.unsent) > 0 {
			if err := c.writable(); err != nil {
				return err
			}
			if err := c.write(kindEvent, t.id, &t.unsent[0]); err != nil {
				return err
			}
			t.unsent = t.unsent[1:]
		}
		select {
		case <-c.ctx.Done():
			return c.ctx.Err()
		case <-c.frozen:
			return errFrozen
		case g := <-c.frames:
			g.closeFiles()
			return c.fail(g.id, fmt.Errorf("request on an event connection: %w", errdefs.ErrFailedPrecondition))
		case <-t.sub.wake:
		}
		var ok bool
		if t.unsent, ok = c.s.events.take(t.sub); !ok {
			return c.fail(t.id, fmt.Errorf("more than %d events waited: %w", maxQueued, errdefs.ErrResourceExhausted))
		}
	}
}

// writable waits until an event can be sent without waiting for the client: who does not read must not hold up a freeze.
func (c *conn) writable() error {
	for {
		ready := false
		raw, err := c.c.SyscallConn()
		if err == nil {
			err = raw.Control(func(fd uintptr) {
				n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, 0)
				ready = err == nil && n > 0
			})
		}
		if err != nil || ready {
			return err
		}
		select {
		case <-c.ctx.Done():
			return c.ctx.Err()
		case <-c.frozen:
			return errFrozen
		case <-time.After(slowClient):
		}
	}
}

// slowClient is how often one looks whether a client reads again.
const slowClient = 20 * time.Millisecond

func (t *eventTask) save() (savedTask, []int) {
	all := append(slices.Clip(t.unsent), t.sub.queue...)
	return savedTask{Kind: "events", ID: t.id, Events: all, Cut: t.sub.cut, But: t.sub.but}, nil
}
