package hostlocal

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"

	"github.com/containerd/errdefs"
)

// Range is a part of a subnet that addresses are given from.
type Range struct {
	Subnet  netip.Prefix
	Start   netip.Addr // inclusive; the default is the first address, which is passed over where it is the gateway
	End     netip.Addr // inclusive; the default is the last one, less the broadcast address of IPv4
	Gateway netip.Addr // never given; the default is the first address
}

type rangeJSON struct {
	RangeStart string `json:"rangeStart"`
	RangeEnd   string `json:"rangeEnd"`
	Subnet     string `json:"subnet"`
	Gateway    string `json:"gateway"`
}

// UnmarshalJSON reads a range as the configuration has it, and completes and checks it.
func (r *Range) UnmarshalJSON(b []byte) error {
	var j rangeJSON
	if err := json.Unmarshal(b, &j); err != nil {
		return err
	}
	parsed, err := j.parse()
	if err != nil {
		return err
	}
	*r = parsed
	return nil
}

func (j rangeJSON) parse() (Range, error) {
	subnet, err := netip.ParsePrefix(j.Subnet)
	if err != nil {
		return Range{}, fmt.Errorf("subnet %q is not a prefix such as 10.88.0.0/16: %w", j.Subnet, errdefs.ErrInvalidArgument)
	}
	if subnet.Addr().Is4In6() {
		return Range{}, fmt.Errorf("subnet %s: an IPv4 address in IPv6 form: %w", subnet, errdefs.ErrInvalidArgument)
	}
	if subnet != subnet.Masked() {
		return Range{}, fmt.Errorf("subnet %s has host bits set, the network is %s: %w", subnet, subnet.Masked(), errdefs.ErrInvalidArgument)
	}
	if subnet.Bits() > subnet.Addr().BitLen()-2 {
		return Range{}, fmt.Errorf("subnet %s is too small to give addresses from: %w", subnet, errdefs.ErrInvalidArgument)
	}
	first := subnet.Addr().Next()
	r := Range{Subnet: subnet, Start: first, End: last(subnet), Gateway: first}
	for _, f := range []struct {
		name, value string
		to          *netip.Addr
	}{{"rangeStart", j.RangeStart, &r.Start}, {"rangeEnd", j.RangeEnd, &r.End}, {"gateway", j.Gateway, &r.Gateway}} {
		if f.value == "" {
			continue
		}
		a, err := netip.ParseAddr(f.value)
		if err != nil {
			return Range{}, fmt.Errorf("%s %q is not an address: %w", f.name, f.value, errdefs.ErrInvalidArgument)
		}
		*f.to = a.Unmap()
		if f.name != "gateway" && !subnet.Contains(*f.to) {
			return Range{}, fmt.Errorf("%s %s is not in %s: %w", f.name, a, subnet, errdefs.ErrInvalidArgument)
		}
	}
	if r.End.Less(r.Start) {
		return Range{}, fmt.Errorf("rangeEnd %s is before rangeStart %s: %w", r.End, r.Start, errdefs.ErrInvalidArgument)
	}
	return r, nil
}

// last is the last address of a subnet that a host may have.
func last(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	if len(b) == 4 {
		b[3]--
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// Contains tells whether a may be given from the range.
func (r Range) Contains(a netip.Addr) bool {
	return r.Subnet.Contains(a) && !a.Less(r.Start) && !r.End.Less(a)
}

func (r Range) overlaps(o Range) bool {
	return r.Contains(o.Start) || r.Contains(o.End) || o.Contains(r.Start) || o.Contains(r.End)
}

// String is "START-END".
func (r Range) String() string { return r.Start.String() + "-" + r.End.String() }

// RangeSet is a list of ranges of one family; an attachment gets one address from each set.
type RangeSet []Range

func (s RangeSet) check() error {
	if len(s) == 0 {
		return fmt.Errorf("empty range set: %w", errdefs.ErrInvalidArgument)
	}
	for i, r := range s {
		if r.Start.Is4() != s[0].Start.Is4() {
			return fmt.Errorf("a range set of both address families: %w", errdefs.ErrInvalidArgument)
		}
		for _, o := range s[:i] {
			if r.overlaps(o) {
				return fmt.Errorf("ranges %s and %s overlap: %w", o, r, errdefs.ErrInvalidArgument)
			}
		}
	}
	return nil
}

// find returns the range that a may be given from.
func (s RangeSet) find(a netip.Addr) (Range, bool) {
	for _, r := range s {
		if r.Contains(a) {
			return r, true
		}
	}
	return Range{}, false
}

// String lists the ranges.
func (s RangeSet) String() string {
	names := make([]string, len(s))
	for i, r := range s {
		names[i] = r.String()
	}
	return strings.Join(names, ",")
}

// each calls f with the addresses of the set in the order they are given, behind after if that is in the set, each
// once, gateways left out, until f returns false.
func (s RangeSet) each(after netip.Addr, f func(netip.Addr, Range) bool) {
	first, addr := 0, s[0].Start
	for i, r := range s {
		if after.IsValid() && r.Contains(after) {
			first, addr = i, after.Next()
		}
	}
	begin := addr
	for n := first; n <= first+len(s); n++ {
		r := s[n%len(s)]
		if n > first {
			addr = r.Start
		}
		for ; r.Contains(addr); addr = addr.Next() {
			if n == first+len(s) && addr == begin {
				return
			}
			if addr != r.Gateway && !f(addr, r) {
				return
			}
		}
	}
}
