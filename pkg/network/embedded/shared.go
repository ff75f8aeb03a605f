package embedded

import (
	"net/netip"
	"sync"
)

// shared serialises what is made once for all pods: bridges and their addresses.
type shared struct {
	mu sync.Mutex // held for as long as one of them is being made

	known sync.Mutex // of what follows, and for that only
	done  map[settled]bool
}

// settled is a gateway address that this process has seen on a bridge, or has given it, and what it means for the others there
// was looked into. It need not be there any more.
type settled struct {
	bridge int // index
	addr   netip.Prefix
}

// maxSettled bounds what is remembered: bridges come and go, and each has an index of its own.
const maxSettled = 64

func (s *shared) settled(bridge int, gateways []netip.Prefix) bool {
	s.known.Lock()
	defer s.known.Unlock()
	for _, gw := range gateways {
		if !s.done[settled{bridge, gw}] {
			return false
		}
	}
	return true
}

func (s *shared) settle(bridge int, gateways []netip.Prefix) {
	s.known.Lock()
	defer s.known.Unlock()
	if s.done == nil || len(s.done) >= maxSettled {
		s.done = map[settled]bool{}
	}
	for _, gw := range gateways {
		s.done[settled{bridge, gw}] = true
	}
}

func (s *shared) unsettle(bridge int, gateways []netip.Prefix) {
	s.known.Lock()
	defer s.known.Unlock()
	for _, gw := range gateways {
		delete(s.done, settled{bridge, gw})
	}
}
