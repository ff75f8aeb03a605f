package nat

import (
	"errors"
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Masquerade lets traffic of each address that leaves its prefix have the host's address, but for multicast. An
// address that another owner has still is taken over: only a live attachment is given an address.
func (t *Table) Masquerade(o Owner, addrs []netip.Prefix) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	known := t.ready
	for _, p := range addrs {
		known = known && t.subnets[p.Masked()]
	}
	// Whatever is in its way, the library's transaction sees to it, or tells what it is.
	if known && t.addMasqueraded(o, addrs) == nil {
		t.hold(o, addrs)
		return nil
	}
	err := t.masquerade(o, addrs, true)
	// The address is there with another subnet's chain: adding it is refused, deleting is not.
	if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST) {
		err = t.masquerade(o, addrs, false)
	}
	if err == nil {
		t.hold(o, addrs)
	}
	return err
}

func (t *Table) hold(o Owner, addrs []netip.Prefix) {
	o.Pod = ""
	for _, p := range addrs {
		t.holders[p.Addr()] = o
	}
}

// held are those of addresses that o has still. ok: it is known of each who has it.
func (t *Table) held(o Owner, addrs []netip.Addr) (mine []netip.Addr, ok bool) {
	o.Pod = ""
	for _, a := range addrs {
		by, known := t.holders[a]
		if !known {
			return nil, false
		}
		if by == o {
			mine = append(mine, a)
		}
	}
	return mine, len(addrs) > 0
}

func (t *Table) masquerade(o Owner, addrs []netip.Prefix, addFirst bool) error {
	var made []netip.Prefix
	err := t.change(func(c *nftables.Conn) error {
		made = made[:0]
		for _, p := range addrs {
			f, subnet := t.family(p.Addr()), p.Masked()
			chain := &nftables.Chain{Name: masqChain(subnet), Table: t.table}
			if !t.subnets[subnet] {
				t.defineSubnet(c, f, chain, subnet)
				made = append(made, subnet)
			}
			e := []nftables.SetElement{{Key: p.Addr().AsSlice(), Comment: o.comment(),
				VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: chain.Name}}}
			// Adding an element that is there keeps the old comment, deleting one that is not is an error: add,
			// delete, add leaves ours whatever was there.
			if addFirst {
				if err := c.SetAddElements(f.to, e); err != nil {
					return err
				}
			}
			if err := c.SetDeleteElements(f.to, []nftables.SetElement{{Key: e[0].Key}}); err != nil {
				return err
			}
			if err := c.SetAddElements(f.to, e); err != nil {
				return err
			}
		}
		return nil
	})
	if err == nil {
		for _, s := range made {
			t.subnets[s] = true
		}
	}
	return err
}

func masqChain(subnet netip.Prefix) string {
	return "masq-" + strings.NewReplacer(":", "_", "/", "-").Replace(subnet.String())
}

// defineSubnet adds the chain of a subnet: ip daddr != SUBNET masquerade.
func (t *Table) defineSubnet(c *nftables.Conn, f *family, chain *nftables.Chain, subnet netip.Prefix) {
	c.AddChain(chain)
	c.FlushChain(chain)
	mask := make([]byte, f.bytes)
	for i := range subnet.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	es := append(f.is(), f.load(f.daddr, reg1)...) // is: so that nft shows it as ip daddr
	es = append(es, &expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: f.bytes, Mask: mask, Xor: make([]byte, f.bytes)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg1, Data: subnet.Addr().AsSlice()}, &expr.Masq{})
	c.AddRule(&nftables.Rule{Table: t.table, Chain: chain, Exprs: es})
}

// Unmasquerade takes back what Masquerade did for o. addrs are its addresses where they are known; nil looks through
// all. Idempotent.
func (t *Table) Unmasquerade(o Owner, addrs []netip.Addr) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if mine, ok := t.held(o, addrs); ok {
		if len(mine) == 0 {
			return nil
		}
		err := t.deleteMasqueraded(mine)
		for _, a := range mine {
			delete(t.holders, a)
		}
		if err == nil {
			return nil
		}
	}
	gone := map[*nftables.Set][]nftables.SetElement{}
	collect := func(s *nftables.Set, key []byte) error {
		found, err := t.get(s, key)
		for _, e := range found {
			if o.is(e.comment) {
				gone[s] = append(gone[s], nftables.SetElement{Key: e.key})
			}
		}
		return err
	}
	for _, a := range addrs {
		if err := collect(t.family(a).to, a.AsSlice()); err != nil {
			return err
		}
	}
	if addrs == nil {
		for _, f := range t.families() {
			if err := collect(f.to, nil); err != nil {
				return err
			}
		}
	}
	return t.remove(gone)
}

// remove deletes elements in one transaction.
func (t *Table) remove(gone map[*nftables.Set][]nftables.SetElement) error {
	if len(gone) == 0 {
		return nil
	}
	err := t.change(func(c *nftables.Conn) error {
		for s, elems := range gone {
			// One attribute holds at most 64 KiB.
			for len(elems) > 0 {
				n := min(len(elems), 500)
				if err := c.SetDeleteElements(s, elems[:n]); err != nil {
					return err
				}
				elems = elems[n:]
			}
		}
		return nil
	})
	// The ruleset was flushed since it was looked at.
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}
