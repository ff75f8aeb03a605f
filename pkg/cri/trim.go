package cri

import (
	"runtime/debug"
	"sync/atomic"
	"time"
)

// trimAfter is how long after the last change of a pod or container unused memory goes back to the kernel. What starts
// and ends pods leaves garbage several times as large as what stays of them, and Go keeps pages for a next burst.
const trimAfter = 3 * time.Second

// How much garbage, in percent of what is alive, is let lie before it is collected. While pods come and go, collecting
// less often is a tenth of the server's work saved, and trim gives the memory back; at rest memory counts.
const (
	garbageBusy = 300
	garbageRest = 50
)

// trimmer gives unused memory back when pods have not changed for a while. Calls that change nothing (lists, stats,
// probes) don't count: a node that runs on as it is is not collected again and again.
type trimmer struct {
	timer *time.Timer
	busy  atomic.Bool
}

func (t *trimmer) start() { t.timer = time.AfterFunc(trimAfter, t.trim) }

func (t *trimmer) trim() {
	t.busy.Store(false)
	debug.SetGCPercent(garbageRest)
	debug.FreeOSMemory()
}

// changed puts the next trim off.
func (t *trimmer) changed() {
	if t.timer == nil {
		return
	}
	if !t.busy.Swap(true) {
		debug.SetGCPercent(garbageBusy)
	}
	t.timer.Reset(trimAfter)
}

func (t *trimmer) stop() error {
	t.timer.Stop()
	return nil
}
