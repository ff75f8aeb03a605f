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
	var add []pending
	seen := map[netip.Addr]bool{}
	for _, m := range maps {
		p, err := t.pend(m)
		if err != nil {
			return err
		}
		add = append(add, p)
		if a := m.To.Addr(); hairpin && !seen[a] {
			seen[a] = true
			f := t.family(a)
			add = append(add, pending{set: f.hairpin, key: append(a.AsSlice(), a.AsSlice()...)})
			if a.Is4() {
				lo := netip.AddrFrom4([4]byte{127, 0, 0, 1})
				add = append(add, pending{set: f.hairpin, key: append(lo.AsSlice(), a.AsSlice()...)})
			}
		}
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

// present returns what the sets that will be added to hold, by set name and key.
func (t *Table) present(add []pending) (map[string]element, error) {
	all, listed := map[string]element{}, map[*nftables.Set]bool{}
	list := func(s *nftables.Set) error {
		if listed[s] {
			return nil
		}
		listed[s] = true
		found, err := t.get(s, nil)
		for _, e := range found {
			all[s.Name+string(e.key)] = e
		}
		return err
	}
	for _, p := range add {
		sets := []*nftables.Set{p.set}
		if p.data != nil { // both, for a port on one address collides with the same on all
			f := t.family(p.m.To.Addr())
			sets = []*nftables.Set{f.hostport, f.hostportAddr}
		}
		for _, s := range sets {
			if err := list(s); err != nil {
				return nil, err
			}
		}
	}
	return all, nil
}

// conflict tells whether another pod has the port, on the same address or on all of them.
func (p pending) conflict(o Owner, t *Table, present map[string]element) error {
	if p.data == nil {
		return nil
	}
	f := t.family(p.m.To.Addr())
	port := p.key[len(p.key)-8:] // protocol . port
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

// Unforward takes back what Forward did for o. Idempotent.
func (t *Table) Unforward(o Owner) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	gone := map[*nftables.Set][]nftables.SetElement{}
	for _, f := range t.families() {
		for _, s := range []*nftables.Set{f.hostport, f.hostportAddr, f.hairpin} {
			found, err := t.get(s, nil)
			if err != nil {
				return err
			}
			for _, e := range found {
				if o.is(e.comment) {
					gone[s] = append(gone[s], nftables.SetElement{Key: e.key})
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
