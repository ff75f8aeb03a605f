package runtime

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/seed-9a14075a/cri-server/pkg/imagestore"
)

const (
	// layerMaxAge is how old a measurement may be before it is taken again; kubelet asks every 10 s.
	layerMaxAge = 10 * time.Second
	// layerShare keeps many layers, or one of a million files, from being walked all the time: the pause is at least this
	// many times as long as it takes to measure all layers once.
	layerShare = 20
	// layerPatience is how long a request waits for layers that were never measured.
	layerPatience = 250 * time.Millisecond
	// layerWalks is how many layers are measured at the same time.
	layerWalks = 2
)

// layers keeps what the containers' writable layers use. Measuring one means to walk it, so no request does that: it
// gets the last measurement, and if that is old a new one is begun.
type layers struct {
	measure func(id string) (imagestore.Usage, error)
	tasks   *sync.WaitGroup // counts the walkers, which end when there is nothing more to walk

	mu      sync.Mutex
	byID    map[string]*layerUsage
	queue   []string
	walkers int
	total   time.Duration // what the last measurements took together
}

type layerUsage struct {
	usage  imagestore.Usage
	took   time.Duration
	due    time.Time     // of the next measurement
	queued bool          // or being measured
	known  chan struct{} // closed when there is a usage, or none can be had
}

// request begins the measurement of layers whose last one is too old. It returns what to wait for: those that were never
// measured.
func (l *layers) request(now time.Time, ids ...string) (unknown []<-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.byID == nil {
		l.byID = map[string]*layerUsage{}
	}
	for _, id := range ids {
		u := l.byID[id]
		if u == nil {
			u = &layerUsage{known: make(chan struct{})}
			l.byID[id] = u
		}
		if u.usage.Time.IsZero() {
			unknown = append(unknown, u.known)
		}
		if u.queued || now.Before(u.due) {
			continue
		}
		u.queued = true
		l.queue = append(l.queue, id)
	}
	for l.walkers < min(layerWalks, len(l.queue)) {
		l.walkers++
		l.tasks.Go(l.walk)
	}
	return unknown
}

func (l *layers) walk() {
	for {
		l.mu.Lock()
		if len(l.queue) == 0 {
			l.walkers--
			l.mu.Unlock()
			return
		}
		id := l.queue[0]
		l.queue = l.queue[1:]
		u := l.byID[id]
		l.mu.Unlock()
		if u == nil { // forgotten meanwhile
			continue
		}
		begin := time.Now()
		usage, err := l.measure(id)
		end := time.Now()

		l.mu.Lock()
		first := u.usage.Time.IsZero()
		u.queued = false
		switch {
		case err == nil:
			if l.byID[id] == u {
				l.total += end.Sub(begin) - u.took
			}
			u.usage, u.took, u.due = usage, end.Sub(begin), end.Add(layerPause(l.total))
		case l.byID[id] == u: // the container is going
			l.drop(id)
		}
		if first {
			close(u.known)
		}
		l.mu.Unlock()
	}
}

// layerPause is how long to wait between measurements that together take so long.
func layerPause(total time.Duration) time.Duration { return max(layerMaxAge, layerShare*total) }

func (l *layers) get(id string) (imagestore.Usage, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	u := l.byID[id]
	if u == nil || u.usage.Time.IsZero() {
		return imagestore.Usage{}, false
	}
	return u.usage, true
}

// drop is called with mu held.
func (l *layers) drop(id string) {
	if u := l.byID[id]; u != nil {
		l.total -= u.took
		delete(l.byID, id)
	}
}

func (l *layers) forget(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drop(id)
	l.queue = slices.DeleteFunc(l.queue, func(q string) bool { return q == id })
}

// LayerUsage is what a container's writable layer used when it was last measured; Time says when. False if it never was.
func (c *Containers) LayerUsage(id string) (imagestore.Usage, bool) { return c.layers.get(id) }

// MeasureLayers sees to it that the writable layers of containers are known, not much older than 10 s. It waits for a
// moment for those that never were measured, and leaves the rest to the background.
func (c *Containers) MeasureLayers(ctx context.Context, list ...*Container) {
	ids := make([]string, 0, len(list))
	for _, ctr := range list {
		if ctr.Broken == "" {
			ids = append(ids, ctr.ID)
		}
	}
	unknown := c.layers.request(time.Now(), ids...)
	if len(unknown) == 0 {
		return
	}
	timer := time.NewTimer(layerPatience)
	defer timer.Stop()
	for _, known := range unknown {
		select {
		case <-known:
		case <-timer.C:
			return
		case <-ctx.Done():
			return
		}
	}
}
