package hostlocal

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
)

// Add gives the attachment one address of every range set. On error none is kept. errdefs.ErrAlreadyExists when it has
// one, errdefs.ErrResourceExhausted when a set has none left.
func Add(ctx context.Context, c *Config, id, ifname string) (*current.Result, error) {
	r := &current.Result{CNIVersion: current.ImplementedSpecVersion, Routes: slices.Clone(c.Routes)}
	if c.ResolvConf != "" {
		dns, err := parseResolvConf(c.ResolvConf)
		if err != nil {
			return nil, fmt.Errorf("host-local: resolvConf: %w", err)
		}
		r.DNS = *dns
	}
	s := open(c.Dir)
	err := s.locked(ctx, func() error {
		var given []netip.Addr
		err := c.give(s, id, ifname, func(a netip.Addr, from Range) {
			given = append(given, a)
			r.IPs = append(r.IPs, &current.IPConfig{
				Address: net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(from.Subnet.Bits(), a.BitLen())},
				Gateway: from.Gateway.AsSlice(),
			})
		})
		if err != nil {
			for _, a := range given {
				err = errors.Join(err, s.release(a))
			}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return r, nil
}

func (c *Config) give(s *store, id, ifname string, given func(netip.Addr, Range)) error {
	wanted := append([]netip.Addr(nil), c.Requested...)
	had := s.of(id, ifname)
	for n, set := range c.Ranges {
		name := strconv.Itoa(n)
		if i, r := pick(wanted, set); i >= 0 {
			a := wanted[i]
			wanted = append(wanted[:i], wanted[i+1:]...)
			if a == r.Gateway {
				return fmt.Errorf("host-local: requested address %s is the gateway of %s: %w", a, r.Subnet, errdefs.ErrInvalidArgument)
			}
			ok, err := s.reserve(a, id, ifname, name)
			if err != nil {
				return err
			}
			if !ok {
				return fmt.Errorf("host-local: requested address %s is taken: %w", a, errdefs.ErrAlreadyExists)
			}
			given(a, r)
			continue
		}
		for _, a := range had {
			if _, ok := set.find(a); ok {
				return fmt.Errorf("host-local: %s %s has %s already: %w", id, ifname, a, errdefs.ErrAlreadyExists)
			}
		}
		var failed error
		done := false
		set.each(s.lastOf(name), func(a netip.Addr, r Range) bool {
			if done, failed = s.reserve(a, id, ifname, name); done {
				given(a, r)
			}
			return !done && failed == nil
		})
		if failed != nil {
			return failed
		}
		if !done {
			return fmt.Errorf("host-local: network %s has no address left in %s (leases are in %s): %w", c.Network, set, c.Dir, errdefs.ErrResourceExhausted)
		}
	}
	if len(wanted) > 0 {
		return fmt.Errorf("host-local: requested addresses %v are in no range of network %s: %w", wanted, c.Network, errdefs.ErrInvalidArgument)
	}
	return nil
}

// pick returns the first wanted address that set can give, or -1.
func pick(wanted []netip.Addr, set RangeSet) (int, Range) {
	for i, a := range wanted {
		if r, ok := set.find(a); ok {
			return i, r
		}
	}
	return -1, Range{}
}

// Del releases the attachment's addresses and returns them. Idempotent.
func Del(ctx context.Context, c *Config, id, ifname string) ([]netip.Addr, error) {
	s := open(c.Dir)
	var released []netip.Addr
	err := s.locked(ctx, func() error {
		as := s.of(id, ifname)
		if len(as) == 0 {
			// Nothing known of it, which is rare: make sure, for mtimes are coarse.
			if err := s.load(true); err != nil {
				return err
			}
			as = s.of(id, ifname)
		}
		for _, a := range as {
			if err := s.release(a); err != nil {
				return err
			}
			released = append(released, a)
		}
		return nil
	})
	return released, err
}

// Leases returns the attachment's addresses.
func Leases(ctx context.Context, c *Config, id, ifname string) (as []netip.Addr, err error) {
	s := open(c.Dir)
	err = s.locked(ctx, func() error {
		as = s.of(id, ifname)
		return nil
	})
	return as, err
}

// Check is nil when the attachment has an address; else errdefs.ErrNotFound.
func Check(ctx context.Context, c *Config, id, ifname string) error {
	s := open(c.Dir)
	return s.locked(ctx, func() error {
		if len(s.of(id, ifname)) == 0 {
			return fmt.Errorf("host-local: %s %s has no address in network %s: %w", id, ifname, c.Network, errdefs.ErrNotFound)
		}
		return nil
	})
}

// GC releases the addresses whose attachment keep refuses. ifname is "" in leases of old versions of the plugin. A
// lease that can't be read as one is left alone.
func GC(ctx context.Context, dir string, keep func(id, ifname string) bool) error {
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	s := open(dir)
	return s.locked(ctx, func() error {
		if err := s.load(true); err != nil {
			return err
		}
		for a, lease := range s.leases {
			id, ifname, _ := strings.Cut(lease, "\r\n")
			if id == "" || keep(id, ifname) {
				continue
			}
			if err := s.release(a); err != nil {
				return err
			}
		}
		return nil
	})
}

// Lease is an address and the attachment that has it. IfName is "" in leases of old versions of the plugin.
type Lease struct {
	Address    netip.Addr
	ID, IfName string
}

// All lists the leases of a directory, those that can't be read as one left out. A missing directory has
// none.
func All(ctx context.Context, dir string) (list []Lease, err error) {
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	s := open(dir)
	err = s.locked(ctx, func() error {
		for a, lease := range s.leases {
			if id, ifname, _ := strings.Cut(lease, "\r\n"); id != "" {
				list = append(list, Lease{a, id, ifname})
			}
		}
		return nil
	})
	slices.SortFunc(list, func(a, b Lease) int { return a.Address.Compare(b.Address) })
	return list, err
}

// maxResolvConf bounds what is read of a resolv.conf.
const maxResolvConf = 1 << 20

func parseResolvConf(path string) (*types.DNS, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var dns types.DNS
	lines := bufio.NewScanner(io.LimitReader(f, maxResolvConf))
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		if len(words) < 2 || words[0][0] == '#' || words[0][0] == ';' {
			continue
		}
		switch words[0] {
		case "nameserver":
			dns.Nameservers = append(dns.Nameservers, words[1])
		case "domain":
			dns.Domain = words[1]
		case "search":
			dns.Search = append(dns.Search, words[1:]...)
		case "options":
			dns.Options = append(dns.Options, words[1:]...)
		}
	}
	return &dns, lines.Err()
}
