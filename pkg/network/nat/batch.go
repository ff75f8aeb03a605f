package nat

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// batch is one transaction of changes to elements, as nfnetlink takes it in one datagram: what a pod's start and end need of
// nftables, in two system calls.
type batch struct {
	b    []byte
	seq  uint32 // of the last message
	last int    // where its header is
}

// header appends a message's, with struct nfgenmsg behind it.
func (x *batch) header(kind, flags uint16, family byte, resource uint16) {
	x.seq++
	x.last = len(x.b)
	x.b = binary.NativeEndian.AppendUint32(x.b, 0) // see end
	x.b = binary.NativeEndian.AppendUint16(x.b, kind)
	x.b = binary.NativeEndian.AppendUint16(x.b, unix.NLM_F_REQUEST|flags)
	x.b = binary.NativeEndian.AppendUint32(x.b, x.seq)
	x.b = binary.NativeEndian.AppendUint32(x.b, 0)
	x.b = append(x.b, family, unix.NFNETLINK_V0)
	x.b = binary.BigEndian.AppendUint16(x.b, resource)
}

func (x *batch) end() { binary.NativeEndian.PutUint32(x.b[x.last:], uint32(len(x.b)-x.last)) }

func (x *batch) attr(kind uint16, value []byte) {
	x.b = binary.NativeEndian.AppendUint16(x.b, uint16(unix.SizeofNlAttr+len(value)))
	x.b = binary.NativeEndian.AppendUint16(x.b, kind)
	x.b = pad(append(x.b, value...)...)
}

func (x *batch) text(kind uint16, s string) { x.attr(kind, append([]byte(s), 0)) }

func (x *batch) nest(kind uint16, fill func()) {
	at := len(x.b)
	x.attr(kind|unix.NLA_F_NESTED, nil)
	fill()
	binary.NativeEndian.PutUint16(x.b[at:], uint16(len(x.b)-at))
}

// element appends a change of one element of a set; fill adds what it has beside its key.
func (x *batch) element(kind, flags uint16, s *nftables.Set, key []byte, fill func()) {
	x.header(unix.NFNL_SUBSYS_NFTABLES<<8|kind, flags, byte(s.Table.Family), 0)
	x.text(unix.NFTA_SET_ELEM_LIST_TABLE, s.Table.Name)
	x.text(unix.NFTA_SET_ELEM_LIST_SET, s.Name)
	x.nest(unix.NFTA_SET_ELEM_LIST_ELEMENTS, func() {
		x.nest(unix.NFTA_LIST_ELEM, func() {
			x.nest(unix.NFTA_SET_ELEM_KEY, func() { x.attr(unix.NFTA_DATA_VALUE, key) })
			fill()
		})
	})
	x.end()
}

// transact makes changes in one transaction; the error is the first one's, a unix.Errno if the kernel refused it.
func (t *Table) transact(changes func(x *batch)) error {
	fd, err := t.direct()
	if err != nil {
		return err
	}
	x := &batch{b: make([]byte, 0, 1024), seq: t.seq}
	first := x.seq + 1
	x.header(unix.NFNL_MSG_BATCH_BEGIN, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
	x.end()
	changes(x)
	final := x.seq // is answered; those before it are only if they are refused
	flags := x.b[x.last+6:]
	binary.NativeEndian.PutUint16(flags, binary.NativeEndian.Uint16(flags)|unix.NLM_F_ACK)
	x.header(unix.NFNL_MSG_BATCH_END, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES)
	x.end()
	t.seq = x.seq
	if err = unix.Sendto(fd, x.b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		t.hangUp()
		return fmt.Errorf("nftables: send: %w", err)
	}
	if err, ok := t.verdict(fd, first, final); ok {
		return err
	}
	t.hangUp() // which answer is still to come, nobody knows
	return fmt.Errorf("nftables: no answer that can be read: %w", unix.EBADMSG)
}

// verdict reads answers up to that of the message final, or to a refusal of all, which is answered to the first. Not ok: there is
// no such answer.
func (t *Table) verdict(fd int, first, final uint32) (refused error, ok bool) {
	buf := make([]byte, 4096)
	for {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, false
		}
		for b := buf[:n]; len(b) >= unix.NLMSG_HDRLEN+4; {
			size, kind := int(binary.NativeEndian.Uint32(b)), binary.NativeEndian.Uint16(b[4:])
			seq, errno := binary.NativeEndian.Uint32(b[8:]), int32(binary.NativeEndian.Uint32(b[unix.NLMSG_HDRLEN:]))
			if size < unix.NLMSG_HDRLEN+4 || size > len(b) || kind != unix.NLMSG_ERROR {
				return nil, false
			}
			if errno != 0 && refused == nil && seq-first <= final-first {
				refused = unix.Errno(-errno)
			}
			if seq == final || seq == first && errno != 0 {
				return refused, true
			}
			b = b[min(len(b), (size+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1)):]
		}
	}
}

// direct is the socket of transact. Like the others it stays open.
func (t *Table) direct() (int, error) {
	if t.fd > 0 {
		return t.fd, nil
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return 0, fmt.Errorf("nftables: %w", err)
	}
	wait := unix.NsecToTimeval(timeout.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
		_ = unix.Close(fd)
		return 0, fmt.Errorf("nftables: %w", err)
	}
	t.fd = fd
	return fd, nil
}

// addMasqueraded is masquerade in the common case: the table and the subnets' chains are known to be there, and no address has an
// element. unix.EEXIST: one has. Whatever it fails with, nothing was changed.
func (t *Table) addMasqueraded(o Owner, addrs []netip.Prefix) error {
	comment := userdata.AppendString(nil, userdata.NFTNL_UDATA_SET_ELEM_COMMENT, o.comment())
	return t.transact(func(x *batch) {
		for _, p := range addrs {
			x.element(unix.NFT_MSG_NEWSETELEM, unix.NLM_F_CREATE|unix.NLM_F_EXCL, t.family(p.Addr()).to, p.Addr().AsSlice(), func() {
				x.nest(unix.NFTA_SET_ELEM_DATA, func() {
					x.nest(unix.NFTA_DATA_VERDICT, func() {
						var code = int32(unix.NFT_GOTO)
						x.attr(unix.NFTA_VERDICT_CODE, binary.BigEndian.AppendUint32(nil, uint32(code)))
						x.text(unix.NFTA_VERDICT_CHAIN, masqChain(p.Masked()))
					})
				})
				x.attr(unix.NFTA_SET_ELEM_USERDATA, comment)
			})
		}
	})
}

// deleteMasqueraded takes the elements of addresses away that are there. unix.ENOENT: one is not, and all are as they were.
func (t *Table) deleteMasqueraded(addrs []netip.Addr) error {
	return t.transact(func(x *batch) {
		for _, a := range addrs {
			x.element(unix.NFT_MSG_DELSETELEM, 0, t.family(a).to, a.AsSlice(), func() {})
		}
	})
}
