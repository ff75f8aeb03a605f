package native

import (
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// calm is how long nothing must have been created before kits are made: they are to take no time from containers.
	calm = 5 * time.Millisecond
	// maxKits is how many kinds of containers there is a kit for: those of a pod's first container, and of the others.
	maxKits = 2
	// shelfLife is how long a kit is kept after the last container of its kind was created. It bounds what an idle node has
	// of them, and how old the host's settings can be that a namespace has copied.
	shelfLife = 30 * time.Second
)

// stock are the kits for the kinds of containers that were created last, one of each. They end with the engine, and with
// this process: a stub that waits in one has nothing but its socket. Idle threads make them, and throw them away.
type stock struct {
	mu     sync.Mutex
	wanted []*recipe // the last first
	kits   map[string]*kit
	busy   bool          // a thread makes kits
	life   time.Duration // shelfLife, but in tests
}

// take returns a kit, nil if there is none that is whole. The caller owns it.
func (s *stock) take(r *recipe) *kit {
	if r == nil {
		return nil
	}
	s.mu.Lock()
	k := s.kits[r.key]
	delete(s.kits, r.key)
	s.mu.Unlock()
	if k != nil && k.stub != nil && !k.stub.alive() {
		k.discard()
		return nil
	}
	return k
}

// alive tells whether a stub that has nothing to say still listens.
func (s *stub) alive() bool {
	fds := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n == 0
}

// want says that a container of the kind r was created: the next one finds a kit.
func (s *stock) want(r *recipe) {
	if r == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r.used = time.Now()
	s.wanted = slices.DeleteFunc(s.wanted, func(o *recipe) bool { return o.key == r.key })
	s.wanted = slices.Insert(s.wanted, 0, r)
	s.wanted = s.wanted[:min(len(s.wanted), maxKits)]
}

// tend makes what is wanted, or throws everything away that was not wanted for so long. It returns when to come again;
// negative: when something else was wanted.
func (s *stock) tend(e *Engine) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.wanted) == 0 {
		return -1
	}
	if s.busy {
		return s.life
	}
	s.busy = true
	defer func() { s.busy = false }()
	s.wanted = slices.DeleteFunc(s.wanted, func(r *recipe) bool { return time.Since(r.used) >= s.life })
	s.unlocked(s.unwanted())
	for r := s.missing(); r != nil; r = s.missing() {
		if ago := time.Since(s.wanted[0].used); ago < calm {
			return calm - ago
		}
		s.make(e, r)
	}
	if n := len(s.wanted); n > 0 {
		return max(s.life-time.Since(s.wanted[n-1].used), calm)
	}
	return -1
}

// make makes a kit. s.mu, which is held, is not meanwhile.
func (s *stock) make(e *Engine, r *recipe) {
	s.mu.Unlock()
	k, err := e.newKit(r)
	s.mu.Lock()
	wanted := func(o *recipe) bool { return o.key == r.key }
	switch {
	case err != nil: // a container of this kind shows why
		s.wanted = slices.DeleteFunc(s.wanted, wanted)
	case !slices.ContainsFunc(s.wanted, wanted):
		s.unlocked([]*kit{k})
	default:
		if s.kits == nil {
			s.kits = map[string]*kit{}
		}
		s.kits[r.key] = k
	}
}

// missing is the first recipe without a kit.
func (s *stock) missing() *recipe {
	for _, r := range s.wanted {
		if s.kits[r.key] == nil {
			return r
		}
	}
	return nil
}

// unwanted takes out the kits that are not wanted any more.
func (s *stock) unwanted() (old []*kit) {
	for key, k := range s.kits {
		if !slices.ContainsFunc(s.wanted, func(o *recipe) bool { return o.key == key }) {
			old = append(old, k)
			delete(s.kits, key)
		}
	}
	return old
}

// unlocked discards kits while s.mu, which is held, is not.
func (s *stock) unlocked(old []*kit) {
	if len(old) == 0 {
		return
	}
	s.mu.Unlock()
	for _, k := range old {
		k.discard()
	}
	s.mu.Lock()
}

// clear throws everything away, also what is being made.
func (s *stock) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wanted = nil
	s.unlocked(s.unwanted())
}
