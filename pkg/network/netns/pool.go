package netns

import (
	"sync"
	"time"
)

// Bounds of a Pool.
const (
	poolSize   = 8                    // namespaces at most
	poolAge    = 5 * time.Second      // of a namespace; for so long an idle node holds any
	poolSettle = 3 * time.Millisecond // after a pod, for its answer and what comes next
	poolMemory = time.Second          // how long so many pods as were made at once are expected again
)

// Pool makes network namespaces ahead: the kernel takes some 0.5 ms for one, which a pod whose namespace is there does not
// wait for. It holds as many as pods were made at once a short time ago, makes them when no pod is being made, and gives them
// back a few seconds after the last pod, so that an idle node holds none. That bounds their age too: a namespace
// takes over many of the node's sysctls when it is made (net.ipv4.conf.default, net.ipv4.tcp_rmem), and a pod should have those
// of today.
//
// A namespace in the pool has no name: nothing but this process's descriptors holds it, so that the kernel takes it away
// when the process dies, at whatever moment. It is pinned when it is taken. Namespaces that belong to a pod's user namespace
// can't come from here.
//
// Safe for concurrent use.
type Pool struct {
	size        int
	age, settle time.Duration

	kick, stop, done chan struct{}
	once             sync.Once

	mu     sync.Mutex
	free   []warm // oldest first
	making int    // pods that are being made
	peak   int    // most of them at once
	peakAt time.Time
}

// warm is a namespace and when it was made.
type warm struct {
	nameless
	at time.Time
}

// NewPool returns an empty pool. The caller closes it.
func NewPool() *Pool { return newPool(poolSize, poolAge, poolSettle) }

func newPool(size int, age, settle time.Duration) *Pool {
	p := &Pool{size: size, age: age, settle: settle,
		kick: make(chan struct{}, 1), stop: make(chan struct{}), done: make(chan struct{})}
	go p.run()
	return p
}

// Close gives back what the pool holds. Create makes namespaces as it needs them from then on.
func (p *Pool) Close() error {
	p.once.Do(func() { close(p.stop) })
	<-p.done
	return nil
}

// Begin says that a pod is being made, from before Create until end is called: the pool is not filled meanwhile.
func (p *Pool) Begin() (end func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.making++
	if now := time.Now(); p.making >= p.peak || now.Sub(p.peakAt) > poolMemory {
		p.peak, p.peakAt = p.making, now
	}
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.making--; p.making == 0 {
			select {
			case p.kick <- struct{}{}:
			default:
			}
		}
	}
}

// Create is the function Create, with a namespace of the pool's if there is one.
func (p *Pool) Create(dir, name string) (string, error) {
	return create(dir, name, func() (nameless, error) {
		if w, ok := p.take(time.Now()); ok {
			return w.nameless, nil
		}
		return build()
	})
}

func (p *Pool) take(now time.Time) (warm, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.free) > 0 {
		w := p.free[0]
		p.free = p.free[1:]
		if now.Sub(w.at) < p.age {
			return w, true
		}
		w.close()
	}
	return warm{}, false
}

func (p *Pool) run() {
	defer close(p.done)
	wake := time.NewTimer(0)
	defer wake.Stop()
	for {
		select {
		case <-p.stop:
			p.expire(time.Now().Add(p.age))
			return
		case <-p.kick:
			wake.Reset(p.settle)
			continue
		case <-wake.C:
		}
		p.fill()
		if left, ok := p.expire(time.Now()); ok {
			wake.Reset(left)
		}
	}
}

// fill makes what is wanted, as long as no pod is being made. One that can't be made is left to Create, which tells why.
func (p *Pool) fill() {
	for p.wants(time.Now()) {
		n, err := build()
		if err != nil {
			return
		}
		p.mu.Lock()
		p.free = append(p.free, warm{n, time.Now()})
		p.mu.Unlock()
	}
}

func (p *Pool) wants(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.making == 0 && now.Sub(p.peakAt) < poolMemory && len(p.free) < min(p.peak, p.size)
}

// expire gives back what has become too old by now, and tells when the next will be; not ok: there is none.
func (p *Pool) expire(now time.Time) (left time.Duration, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.free) > 0 {
		if left = p.age - now.Sub(p.free[0].at); left > 0 {
			return left, true
		}
		p.free[0].close()
		p.free = p.free[1:]
	}
	return 0, false
}
