package nat

import (
	"bytes"
	"fmt"
	"net/netip"

	"github.com/containerd/errdefs"
	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// Mapping is one host port.
type Mapping struct {
	Protocol string     // tcp, udp, sctp
	HostIP   netip.Addr // the zero value or an unspecified address: every address of the host
	HostPort uint16
	To       netip.AddrPort // of HostIP's family
}

func (m Mapping) String() string {
	if m.HostIP.IsValid() {
		return fmt.Sprintf("%s port %s", m.Protocol, netip.AddrPortFrom(m.HostIP, m.HostPort))
	}
	return fmt.Sprintf("%s port %d", m.Protocol, m.HostPort)
}

func (m Mapping) wildcard() bool { return !m.HostIP.IsValid() || m.HostIP.IsUnspecified() }

func protocol(name string) (byte, error) {
	switch name {
	case "tcp":
		return unix.IPPROTO_TCP, nil
	case "udp":
		return unix.IPPROTO_UDP, nil
	case "sctp":
		return unix.IPPROTO_SCTP, nil
	}
	return 0, fmt.Errorf("protocol %q: %w", name, errdefs.ErrInvalidArgument)
}

// Forward maps host ports to a pod. With hairpin, the pod itself and callers on localhost (IPv4) reach it through
// them too. errdefs.ErrAlreadyExists with the other's name when a port is taken by a pod of another address; what a
// former pod of the same address left is taken over.
func (t *Table) Forward(o Owner, maps []Mapping, hairpin bool) error {
	if len(maps) == 0 {
		return nil
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	add, err := t.elements(maps, hairpin)
	if err != nil {
		return err
	}
	present, err := t.present(add)
	if err != nil {
		return err
	}
	for _, p := range add {
		if err := p.conflict(o, t, present); err != nil {
			return err
		}
	}
	return t.change(func(c *nftables.Conn) error {
		done := map[string]bool{}
		for _, p := range add {
			id := p.set.Name + string(p.key)
			if done[id] { // the same mapping twice in one pod
				continue
			}
			done[id] = true
			e := []nftables.SetElement{{Key: p.key, Val: p.data, Comment: o.comment()}}
			if _, ok := present[id]; ok {
				if err := c.SetDeleteElements(p.set, []nftables.SetElement{{Key: p.key}}); err != nil {
					return err
				}
			}
			if err := c.SetAddElements(p.set, e); err != nil {
				return err
			}
		}
		return nil
	})
}

// pending is an element to add.
type pending struct {
	set       *nftables.Set
	key, data []byte
	m         Mapping // zero for hairpin elements
}

// elements are those that stand for maps.
func (t *Table) elements(maps []Mapping, hairpin bool) ([]pending, error) {
	var all []pending
	seen := map[netip.Addr]bool{}
	for _, m := range maps {
		p, err := t.pend(m)
		if err != nil {
			return nil, err
		}
		all = append(all, p)
		if a := m.To.Addr(); hairpin && !seen[a] {
			seen[a] = true
			f := t.family(a)
			all = append(all, pending{set: f.hairpin, key: append(a.AsSlice(), a.AsSlice()...)})
			if a.Is4() {
				lo := netip.AddrFrom4([4]byte{127, 0, 0, 1})
				all = append(all, pending{set: f.hairpin, key: append(lo.AsSlice(), a.AsSlice()...)})
			}
		}
	}
	return all, nil
}

func (t *Table) pend(m Mapping) (pending, error) {
	proto, err := protocol(m.Protocol)
	if err != nil {
		return pending{}, err
	}
	f := t.family(m.To.Addr())
	p := pending{set: f.hostport, key: portKey(proto, m.HostPort), data: target(m.To.Addr(), m.To.Port()), m: m}
	if !m.wildcard() {
		p.set, p.key = f.hostportAddr, append(m.HostIP.AsSlice(), p.key...)
	}
	return p, nil
}

// present returns what is in the places that will be added to, and what may collide with it, by set name and key. Single
// elements are asked for: a dump of a set takes milliseconds with some hundred pods. Only a port on every address has
// to be compared with all that are on one, which are few.
func (t *Table) present(add []pending) (map[string]element, error) {
	all, listed := map[string]element{}, map[*nftables.Set]bool{}
	look := func(s *nftables.Set, key []byte) error {
		if key == nil && listed[s] {
			return nil
		}
		listed[s] = listed[s] || key == nil
		found, err := t.get(s, key)
		for _, e := range found {
			all[s.Name+string(e.key)] = e
		}
		return err
	}
	for _, p := range add {
		err := look(p.set, p.key)
		if f := t.family(p.m.To.Addr()); err == nil && p.data != nil {
			if p.set == f.hostportAddr {
				err = look(f.hostport, p.port())
			} else {
				err = look(f.hostportAddr, nil)
			}
		}
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

// port is the end of a host port's key: protocol . port.
func (p pending) port() []byte { return p.key[len(p.key)-8:] }

// conflict tells whether another pod has the port, on the same address or on all of them.
func (p pending) conflict(o Owner, t *Table, present map[string]element) error {
	if p.data == nil {
		return nil
	}
	f := t.family(p.m.To.Addr())
	port := p.port()
	for id, e := range present {
		switch {
		case id == p.set.Name+string(p.key):
		case p.set == f.hostportAddr && id == f.hostport.Name+string(port):
		case p.set == f.hostport && len(id) > len(f.hostportAddr.Name) && id[:len(f.hostportAddr.Name)] == f.hostportAddr.Name &&
			bytes.HasSuffix(e.key, port):
		default:
			continue
		}
		if o.is(e.comment) || bytes.HasPrefix(e.data, p.m.To.Addr().AsSlice()) {
			continue
		}
		who := "something without a name"
		if other, ok := parseOwner(e.comment); ok {
			who = other.String()
		}
		return fmt.Errorf("host port: %s is in use by %s: %w", p.m, who, errdefs.ErrAlreadyExists)
	}
	return nil
}

// Unforward takes back what Forward did for o. maps are its mappings where they are known; nil looks through all.
// Idempotent.
func (t *Table) Unforward(o Owner, maps []Mapping) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	gone := map[*nftables.Set][]nftables.SetElement{}
	seen := map[string]bool{}
	collect := func(s *nftables.Set, key []byte) error {
		found, err := t.get(s, key)
		for _, e := range found {
			if id := s.Name + string(e.key); o.is(e.comment) && !seen[id] {
				seen[id] = true
				gone[s] = append(gone[s], nftables.SetElement{Key: e.key})
			}
		}
		return err
	}
	known, err := t.elements(maps, true)
	if err != nil {
		return err
	}
	for _, p := range known {
		if err := collect(p.set, p.key); err != nil {
			return err
		}
	}
	if maps == nil {
		for _, f := range t.families() {
			for _, s := range []*nftables.Set{f.hostport, f.hostportAddr, f.hairpin} {
				if err := collect(s, nil); err != nil {
					return err
				}
			}
		}
	}
	return t.remove(gone)
}

// Forwarded reports whether every mapping is in place for o.
func (t *Table) Forwarded(o Owner, maps []Mapping) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, m := range maps {
		p, err := t.pend(m)
		if err != nil {
			return err
		}
		found, err := t.get(p.set, p.key)
		if err != nil {
			return err
		}
		if len(found) != 1 || !o.is(found[0].comment) || !bytes.Equal(found[0].data, p.data) {
			return fmt.Errorf("host port: %s of pod sandbox %s is missing: %w", m, o.ContainerID, errdefs.ErrNotFound)
		}
	}
	return nil
}
