package nat

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// timeout bounds one exchange with the kernel. Transactions are short, but queue for a lock with everybody else's.
const timeout = 10 * time.Second

// Registers as nft(8) numbers them: the first 32-bit register of each 128-bit one, and 32-bit ones (NFT_REG32_01 is 9).
const (
	reg1   = unix.NFT_REG_1
	reg2   = unix.NFT_REG_2 // behind an IPv6 address in reg1
	reg32b = unix.NFT_REG32_01
	reg32c = unix.NFT_REG32_02
	reg32f = unix.NFT_REG32_05
)

// Table is the table of the network namespace of the threads that call it. Safe for concurrent use; one Table per
// namespace and process.
type Table struct {
	mu sync.Mutex // one transaction of ours at a time: what was looked up is still so when it is changed
	// ready: the table was made or checked by this process. subnets: the masq- chains likewise.
	ready   bool
	subnets map[netip.Prefix]bool
	// holders are the addresses whose masq elements this process made, each with its owner.
	holders map[netip.Addr]Owner

	table *nftables.Table
	v4    family
	v6    family

	// The connections stay open: closing one waits until the kernel has freed what former transactions deleted, ~10 ms
	// (nf_tables: NETLINK_URELEASE flushes the destroy work).
	changes *nftables.Conn
	sockets []*netlink.Conn // of changes, of queries
	fd      int             // of transact; 0: not open
	seq     uint32
}

// family holds the sets of one address family.
type family struct {
	proto                               byte   // NFPROTO_*
	bytes, saddr, daddr                 uint32 // of an address; offsets in the network header
	hostport, hostportAddr, hairpin, to *nftables.Set
}

// New returns the table; nothing is made before it is needed.
func New() *Table {
	t := &Table{table: &nftables.Table{Name: "cri_pods", Family: nftables.TableFamilyINet}, subnets: map[netip.Prefix]bool{},
		holders: map[netip.Addr]Owner{}}
	t.v4 = family{proto: unix.NFPROTO_IPV4, bytes: 4, saddr: 12, daddr: 16}
	t.v6 = family{proto: unix.NFPROTO_IPV6, bytes: 16, saddr: 8, daddr: 24}
	t.v4.sets(t.table, "4", 1, nftables.TypeIPAddr)
	t.v6.sets(t.table, "6", 11, nftables.TypeIP6Addr)
	return t
}

func (f *family) sets(t *nftables.Table, suffix string, id uint32, addr nftables.SetDatatype) {
	port := nftables.MustConcatSetType(nftables.TypeInetProto, nftables.TypeInetService)
	set := func(n uint32, name string, key nftables.SetDatatype) *nftables.Set {
		return &nftables.Set{Table: t, ID: id + n, Name: name, KeyType: key, KeyByteOrder: binaryutil.BigEndian}
	}
	f.hostport = set(0, "hostport"+suffix, port)
	f.hostportAddr = set(1, "hostport"+suffix+"_addr", nftables.MustConcatSetType(addr, nftables.TypeInetProto, nftables.TypeInetService))
	for _, m := range []*nftables.Set{f.hostport, f.hostportAddr} {
		m.IsMap, m.DataType = true, nftables.MustConcatSetType(addr, nftables.TypeInetService)
	}
	f.hairpin = set(2, "hairpin"+suffix, nftables.MustConcatSetType(addr, addr))
	f.to = set(3, "masq"+suffix, addr)
	f.to.IsMap, f.to.DataType = true, nftables.TypeVerdict
}

func (t *Table) families() []*family { return []*family{&t.v4, &t.v6} }

func (t *Table) family(a netip.Addr) *family {
	if a.Is4() {
		return &t.v4
	}
	return &t.v6
}

// change runs one transaction that fill fills, making the table first where it is missing.
func (t *Table) change(fill func(c *nftables.Conn) error) error {
	for try := 0; ; try++ {
		c, err := t.dial()
		if err != nil {
			return err
		}
		if !t.ready {
			err = t.define(c)
		}
		if err == nil {
			err = fill(c)
		}
		if err != nil {
			t.forget() // with what is queued
			return fmt.Errorf("nftables: %w", err)
		}
		err = c.Flush()
		if err == nil {
			t.ready = true
			return nil
		}
		// Somebody flushed the ruleset: what we knew to be there is not.
		if errors.Is(err, unix.ENOENT) && try == 0 {
			t.forget()
			continue
		}
		t.forget()
		return fmt.Errorf("nftables: %w", err)
	}
}

// forget drops what was known of the table, and the connections, in whose queues an error may have left replies.
func (t *Table) forget() {
	t.ready, t.subnets = false, map[netip.Prefix]bool{}
	t.hangUp()
}

func (t *Table) hangUp() {
	for _, s := range t.sockets {
		_ = s.Close()
	}
	if t.fd > 0 {
		_ = unix.Close(t.fd)
	}
	t.changes, t.sockets, t.fd = nil, nil, 0
}

// dial returns the connection for changes, with a fresh deadline; that for queries is t.sockets[1].
func (t *Table) dial() (*nftables.Conn, error) {
	if t.changes == nil {
		var s *netlink.Conn
		c, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error { s = c; return nil }))
		if err != nil {
			return nil, fmt.Errorf("nftables: %w", err)
		}
		q, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
		if err != nil {
			_ = s.Close()
			return nil, fmt.Errorf("nftables: %w", err)
		}
		t.changes, t.sockets = c, []*netlink.Conn{s, q}
	}
	for _, s := range t.sockets {
		if err := s.SetDeadline(time.Now().Add(timeout)); err != nil {
			t.hangUp()
			return nil, fmt.Errorf("nftables: %w", err)
		}
	}
	return t.changes, nil
}

// Close closes the connections; the table in the kernel stays. A Table that is used again opens them again.
func (t *Table) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.hangUp()
	return nil
}

// define adds the table, its sets and its rules; what is there already stays as it is, rules are written anew.
func (t *Table) define(c *nftables.Conn) error {
	c.AddTable(t.table)
	for _, f := range t.families() {
		for _, s := range []*nftables.Set{f.hostport, f.hostportAddr, f.hairpin, f.to} {
			if err := c.AddSet(s, nil); err != nil {
				return err
			}
		}
	}
	hostports := c.AddChain(&nftables.Chain{Name: "hostports", Table: t.table})
	nat := func(name string, hook *nftables.ChainHook, prio *nftables.ChainPriority) *nftables.Chain {
		return c.AddChain(&nftables.Chain{Name: name, Table: t.table, Type: nftables.ChainTypeNAT, Hooknum: hook, Priority: prio})
	}
	prerouting := nat("prerouting", nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest)
	output := nat("output", nftables.ChainHookOutput, nftables.ChainPriorityNATDest)
	postrouting := nat("postrouting", nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	for _, ch := range []*nftables.Chain{hostports, prerouting, output, postrouting} {
		c.FlushChain(ch)
	}
	rule := func(ch *nftables.Chain, parts ...[]expr.Any) {
		r := &nftables.Rule{Table: t.table, Chain: ch}
		for _, p := range parts {
			r.Exprs = append(r.Exprs, p...)
		}
		c.AddRule(r)
	}
	for _, ch := range []*nftables.Chain{prerouting, output} {
		rule(ch, local(), verdict(expr.VerdictGoto, hostports.Name))
	}
	for _, f := range t.families() {
		rule(hostports, f.is(), f.dnat(f.hostportAddr))
		rule(hostports, f.is(), f.dnat(f.hostport))
		rule(postrouting, f.is(), f.load(f.saddr, reg1), f.load(f.daddr, f.second()),
			[]expr.Any{&expr.Lookup{SourceRegister: reg1, SetName: f.hairpin.Name, SetID: f.hairpin.ID}, &expr.Masq{}})
	}
	for _, f := range t.families() {
		rule(postrouting, f.is(), f.multicast(), verdict(expr.VerdictReturn, ""))
		rule(postrouting, f.is(), f.load(f.saddr, reg1), []expr.Any{&expr.Lookup{SourceRegister: reg1, SetName: f.to.Name,
			SetID: f.to.ID, IsDestRegSet: true, DestRegister: unix.NFT_REG_VERDICT}})
	}
	return nil
}

// second is the register right behind an address in reg1.
func (f *family) second() uint32 {
	if f.bytes == 4 {
		return reg32b
	}
	return reg2
}

func (f *family) is() []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: []byte{f.proto}}}
}

func (f *family) load(offset, reg uint32) []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.bytes}}
}

// multicast matches 224.0.0.0/4 or ff00::/8.
func (f *family) multicast() []expr.Any {
	mask, value := make([]byte, f.bytes), make([]byte, f.bytes)
	if mask[0], value[0] = 0xf0, 0xe0; f.bytes == 16 {
		mask[0], value[0] = 0xff, 0xff
	}
	return append(f.load(f.daddr, reg1),
		&expr.Bitwise{SourceRegister: reg1, DestRegister: reg1, Len: f.bytes, Mask: mask, Xor: make([]byte, f.bytes)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: value})
}

// dnat looks [address .] protocol . port up in m and goes to the address . port found.
func (f *family) dnat(m *nftables.Set) []expr.Any {
	var es []expr.Any
	proto, port := uint32(reg1), uint32(reg32b)
	if strings.HasSuffix(m.Name, "_addr") {
		es = f.load(f.daddr, reg1)
		if proto, port = reg32b, reg32c; f.bytes == 16 {
			proto, port = reg2, reg32f
		}
	}
	return append(es,
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: proto},
		&expr.Payload{DestRegister: port, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Lookup{SourceRegister: reg1, SetName: m.Name, SetID: m.ID, IsDestRegSet: true, DestRegister: reg1},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f.proto), RegAddrMin: reg1, RegProtoMin: f.second()})
}

// local matches a destination that is an address of this host.
func local() []expr.Any {
	return []expr.Any{&expr.Fib{Register: reg1, ResultADDRTYPE: true, FlagDADDR: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: reg1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)}}
}

func verdict(kind expr.VerdictKind, chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: kind, Chain: chain}}
}
