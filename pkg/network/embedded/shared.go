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
	index map[string]int // of bridges as they were last seen, by name
	ports map[string]int // indexes of the host ends that this process made and has not retired, by name
}

// settled is a gateway address that this process has seen on a bridge, or has given it, and what it means for the others there
// was looked into. It need not be there any more.
type settled struct {
	bridge int // index
	addr   netip.Prefix
}

// bridge is the index that a bridge had last, 0 if nobody knows.
func (s *shared) bridge(name string) int {
	s.known.Lock()
	defer s.known.Unlock()
	return s.index[name]
}

// remember keeps a bridge's index; 0 forgets it.
func (s *shared) remember(name string, index int) {
	s.known.Lock()
	defer s.known.Unlock()
	if s.index[name] == index {
		return
	}
	if s.index == nil || len(s.index) >= maxSettled {
		s.index = map[string]int{}
	}
	s.index[name] = index
}

// made keeps the index of a host end, for retired.
func (s *shared) made(name string, index int) {
	s.known.Lock()
	defer s.known.Unlock()
	if s.ports == nil {
		s.ports = map[string]int{}
	}
	s.ports[name] = index
}

// port is the index of a host end that this process made; 0: it did not.
func (s *shared) port(name string) int {
	s.known.Lock()
	defer s.known.Unlock()
	return s.ports[name]
}

func (s *shared) retired(name string) {
	s.known.Lock()
	defer s.known.Unlock()
	delete(s.ports, name)
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
