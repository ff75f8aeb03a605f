package cri

import (
	"runtime/debug"
	"time"
)

// trimAfter is how long after the last change of a pod or container unused memory goes back to the kernel. What starts
// and ends pods leaves garbage several times as large as what stays of them, and Go keeps pages for a next burst.
const trimAfter = 3 * time.Second

// trimmer gives unused memory back when pods have not changed for a while. Calls that change nothing (lists, stats,
// probes) don't count: a node that runs on as it is is not collected again and again.
type trimmer struct{ timer *time.Timer }

func newTrimmer() trimmer { return trimmer{time.AfterFunc(trimAfter, debug.FreeOSMemory)} }

// changed puts the next trim off.
func (t trimmer) changed() {
	if t.timer != nil {
		t.timer.Reset(trimAfter)
	}
}

func (t trimmer) stop() error {
	t.timer.Stop()
	return nil
}
