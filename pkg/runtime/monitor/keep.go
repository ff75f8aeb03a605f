package monitor

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// keepTime bounds what one keeper may hold up.
const keepTime = time.Second

// keepAgain is when a picture that could not be made, because the file system of a log hangs, is tried again.
var keepAgain = 5 * time.Second

// kept is what a keeper gets of one container, or of the journal, with its descriptors. It replaces what it got before.
type kept struct {
	ID      string          `json:"id,omitempty"`
	Data    json.RawMessage `json:"data,omitempty"`
	Forget  bool            `json:"forget,omitempty"`  // there is no such container any more
	Journal bool            `json:"journal,omitempty"` // this is the journal
	Synced  bool            `json:"synced,omitempty"`  // all that there was has been told
	// Still: the container is there, but no picture of it can be had now. What there is of it counts. It is told before Synced
	// only: a keeper that does not know it forgets the container, as it would if nothing were told of it.
	Still bool `json:"still,omitempty"`
}

// keptJournal is the journal of a loop. That of the first one has had its own form before there were others; to keepers that
// know of no others they are like containers, of ids that no container can have.
func keptJournal(number int) kept {
	if number == 0 {
		return kept{Journal: true}
	}
	return kept{ID: journalPrefix + strconv.Itoa(number)}
}

const journalPrefix = "/journal/"

// journal is the number of the journal that k stands for.
func (k *kept) journal() (number int, ok bool) {
	if k.Journal {
		return 0, true
	}
	text, ok := strings.CutPrefix(k.ID, journalPrefix)
	if !ok {
		return 0, false
	}
	number, err := strconv.Atoi(text)
	return number, err == nil && number > 0
}

// keepJournal gives a loop's journal to the keepers.
func (s *Server) keepJournal(number int, files []int) { s.keepers.put(keptJournal(number), files, nil) }

// keepers are those who hold what would go with this process: connections of cri-server, and systemd.
type keepers struct {
	mu    sync.Mutex
	conns map[*conn]uint64 // with the id of the request
	store *fdStore         // nil: none
}

func (k *keepers) none() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return len(k.conns) == 0 && k.store == nil
}

// put gives v to all keepers, or to one. A keeper that does not take it in time is cut off; it will come again.
func (k *keepers) put(v kept, fds []int, only *conn) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for c, id := range k.conns {
		if only != nil && c != only {
			continue
		}
		c.writes.Lock()
		err := sendFrame(c.c, kindKept, id, v, keepTime, fds)
		c.writes.Unlock()
		if err != nil {
			c.s.log.Warn("keeper cut off", "err", err)
			delete(k.conns, c)
			c.close()
		}
	}
	if k.store != nil && only == nil {
		k.store.put(v, fds)
	}
}

func (k *keepers) add(c *conn, id uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.conns == nil {
		k.conns = map[*conn]uint64{}
	}
	k.conns[c] = id
}

func (k *keepers) remove(c *conn) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.conns, c)
}

func (k *keepers) forget(c *container) {
	c.keeping.Lock()
	defer c.keeping.Unlock()
	k.put(kept{ID: c.id, Forget: true}, nil, nil)
}

// keep gives the container's present picture to the keepers.
func (c *container) keep() { c.keepBy(nil) }

func (c *container) keepBy(only *conn) {
	if c.s.keepers.none() {
		return
	}
	c.keeping.Lock()
	defer c.keeping.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	v, fds, own, err := c.save(ctx, false)
	if err != nil {
		if !c.unkept.Swap(true) {
			c.s.log.Error("container would not survive this process, until it can be asked again", "container", c.id, "err", err)
		}
		if only != nil {
			c.s.keepers.put(kept{ID: c.id, Still: true}, nil, only)
		}
		c.keepLater()
		return
	}
	c.unkept.Store(false)
	defer closeFDs(fds[own:])
	data, err := v.appendJSON(nil)
	if err != nil {
		c.s.log.Error("container would not survive this process", "container", c.id, "err", err)
		return
	}
	c.s.keepers.put(kept{ID: c.id, Data: data}, fds, only)
}

// keepLater has it tried again, once for all who ask for it meanwhile.
func (c *container) keepLater() {
	if c.retries.Swap(true) {
		return
	}
	time.AfterFunc(keepAgain, func() {
		c.retries.Store(false)
		c.inputClosed()
	})
}

// inputClosed is called by the loop, which must not wait: whoever keeps stdin keeps it open. The new picture also has what
// could not be given before.
func (c *container) inputClosed() {
	if _, ok := c.s.freezer.enter(1); !ok {
		c.keepLater() // after an upgrade everything is told again, but not after one that is given up
		return
	}
	c.s.work.Add(1)
	go func() {
		defer c.s.work.Done()
		defer c.s.freezer.leave()
		if c.state.Load() == nil {
			return
		}
		if there, _ := c.lockKept(); there {
			c.keep()
			c.unlock()
		}
	}()
}

// keep makes the connection one of a keeper.
func (c *conn) keep(f *frame) error {
	if err := c.write(kindOK, f.id, nil); err != nil {
		return err
	}
	s := c.s
	s.keepers.add(c, f.id)
	c.task = &keepTask{f.id}
	for n, files := range s.loops.Journals() {
		s.keepers.put(keptJournal(n), files, c)
	}
	for _, ct := range s.all() {
		switch there, busy := ct.lockKept(); {
		case there:
			ct.keepBy(c)
			ct.unlock()
		case busy: // who is at it tells of it then
			s.keepers.put(kept{ID: ct.id, Still: true}, nil, c)
		}
	}
	s.keepers.put(kept{Synced: true}, nil, c)
	return nil
}

// lockKept takes op, so that the engine can be asked. Neither there nor busy: the container has been deleted.
func (c *container) lockKept() (there, busy bool) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*keepTime)
	defer cancel()
	if c.lock(ctx) != nil {
		return false, true
	}
	if c.gone {
		c.unlock()
		return false, false
	}
	return true, false
}

// keepTask is a keeper's connection.
type keepTask struct{ id uint64 }

func (t *keepTask) run(c *conn) error {
	select {
	case <-c.ctx.Done():
		c.s.keepers.remove(c)
		return c.ctx.Err()
	case g := <-c.frames:
		g.closeFiles()
		c.s.keepers.remove(c)
		return fmt.Errorf("request on a keeper's connection: %w", unix.EPROTO)
	case <-c.frozen:
		return errFrozen
	}
}

func (t *keepTask) save() (savedTask, []int) { return savedTask{Kind: "keep", ID: t.id}, nil }
