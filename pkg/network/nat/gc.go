package nat

import (
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
)

// GC removes every element whose owner keep refuses, and the chains of subnets without pods. Elements whose comment
// doesn't name an owner are not ours and stay.
func (t *Table) GC(keep func(Owner) bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	gone := map[*nftables.Set][]nftables.SetElement{}
	chains := map[string]bool{}
	for _, f := range t.families() {
		for _, s := range []*nftables.Set{f.hostport, f.hostportAddr, f.hairpin, f.to} {
			found, err := t.get(s, nil)
			if err != nil {
				return err
			}
			for _, e := range found {
				if o, ok := parseOwner(e.comment); ok && !keep(o) {
					gone[s] = append(gone[s], nftables.SetElement{Key: e.key})
				} else if e.chain != "" {
					chains[e.chain] = true
				}
			}
		}
	}
	if err := t.remove(gone); err != nil {
		return err
	}
	return t.removeChains(chains)
}

// Owners lists whose elements there are, each once.
func (t *Table) Owners() ([]Owner, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var owners []Owner
	for _, f := range t.families() {
		for _, s := range []*nftables.Set{f.hostport, f.hostportAddr, f.hairpin, f.to} {
			found, err := t.get(s, nil)
			if err != nil {
				return nil, err
			}
			for _, e := range found {
				if o, ok := parseOwner(e.comment); ok && !slices.Contains(owners, o) {
					owners = append(owners, o)
				}
			}
		}
	}
	return owners, nil
}

// removeChains deletes the masq- chains that are not in use.
func (t *Table) removeChains(used map[string]bool) error {
	c, err := t.dial()
	if err != nil {
		return err
	}
	all, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return fmt.Errorf("nftables: list chains: %w", err)
	}
	some := false
	for _, ch := range all {
		if ch.Table != nil && ch.Table.Name == t.table.Name && strings.HasPrefix(ch.Name, "masq-") && !used[ch.Name] {
			c.DelChain(&nftables.Chain{Name: ch.Name, Table: t.table})
			some = true
		}
	}
	if !some {
		return nil
	}
	err = c.Flush()
	t.forget()
	if err != nil {
		return fmt.Errorf("nftables: delete chains: %w", err)
	}
	return nil
}
