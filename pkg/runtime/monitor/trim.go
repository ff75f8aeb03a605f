package monitor

import (
	"runtime/debug"
	"sync"
	"time"
)

// trimAfter is how long after the last Create the heap's free pages go back to the kernel: specs are large while they
// are decoded, and a process that lives for months should not keep that.
const trimAfter = 3 * time.Second

// garbageBusy is how much garbage, in percent of what is alive, is let lie while containers are created. At rest it is what
// the process has begun with; with that, a fourteenth of its work in a burst would be the collector's.
const garbageBusy = 300

// trimmer gives unused memory back when no container was created for a while. It changes what is the process's, which has one
// Server.
type trimmer struct {
	mu    sync.Mutex
	timer *time.Timer // nil: stopped
	busy  bool
	rest  int // the percentage to go back to
}

func (t *trimmer) start() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.timer = time.AfterFunc(trimAfter, t.trim)
}

// changed puts the next trim off.
func (t *trimmer) changed() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.timer == nil {
		return
	}
	if !t.busy {
		t.busy, t.rest = true, debug.SetGCPercent(garbageBusy)
	}
	t.timer.Reset(trimAfter)
}

func (t *trimmer) trim() {
	t.mu.Lock()
	t.calm()
	t.mu.Unlock()
	debug.FreeOSMemory()
}

// calm goes back to what is at rest; mu is held.
func (t *trimmer) calm() {
	if t.busy {
		t.busy = false
		debug.SetGCPercent(t.rest)
	}
}

func (t *trimmer) stop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.timer != nil {
		t.timer.Stop()
		t.timer = nil
	}
	t.calm()
}
