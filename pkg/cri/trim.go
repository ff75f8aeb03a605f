package cri

import (
	"context"
	"runtime/debug"
	"runtime/metrics"
	"sync"
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

// wasteful is how many bytes may be holes between what is alive before that is copied together. A copy of a pod's state takes
// some 0.1 ms.
const wasteful = 2 << 20

// trimmer gives unused memory back when pods have not changed for a while. Calls that change nothing (lists, stats,
// probes) don't count: a node that runs on as it is is not collected again and again.
type trimmer struct {
	mu      sync.Mutex
	timer   *time.Timer
	busy    bool
	compact func(ctx context.Context) // lets those who keep state copy it together
	cancel  context.CancelFunc        // of the copying that runs
	done    sync.WaitGroup
}

func (t *trimmer) start() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.timer = time.AfterFunc(trimAfter, t.trim)
}

// with says what is to be called where much of the heap is holes.
func (t *trimmer) with(compact func(ctx context.Context)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.compact = compact
}

func (t *trimmer) trim() {
	t.mu.Lock()
	if t.timer == nil {
		t.mu.Unlock()
		return
	}
	t.busy = false
	debug.SetGCPercent(garbageRest)
	compact := t.compact
	ctx, cancel := context.WithCancel(context.Background())
	t.cancel = cancel
	t.done.Add(1)
	t.mu.Unlock()
	defer t.done.Done()
	defer cancel()
	debug.FreeOSMemory()
	if alive, holes := heap(); compact != nil && holes > wasteful && holes > alive/2 {
		compact(ctx)
		debug.FreeOSMemory()
	}
}

// heap tells what is alive, and how much of the pages that it is on is free.
func heap() (alive, holes uint64) {
	s := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/memory/classes/heap/unused:bytes"}}
	metrics.Read(s)
	return s[0].Value.Uint64(), s[1].Value.Uint64()
}

// changed puts the next trim off, and ends one that is copying.
func (t *trimmer) changed() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.timer == nil {
		return
	}
	if t.cancel != nil {
		t.cancel()
		t.cancel = nil
	}
	if !t.busy {
		t.busy = true
		debug.SetGCPercent(garbageBusy)
	}
	t.timer.Reset(trimAfter)
}

func (t *trimmer) stop() error {
	t.mu.Lock()
	if t.timer != nil {
		t.timer.Stop()
		t.timer = nil
	}
	if t.cancel != nil {
		t.cancel()
	}
	t.mu.Unlock()
	t.done.Wait()
	return nil
}
