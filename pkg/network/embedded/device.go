package embedded

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// device is what the kernel tells of a link, as far as an attachment needs it. (netlink.LinkDeserialize reads everything there is,
// for five answers of each pod.)
type device struct {
	name, kind            string
	also                  []string // alternative names (ip-link(8), altname), Linux 5.5
	index, parent, master int      // parent: IFLA_LINK, a veth's peer
	flags, group, promisc uint32
	oper                  uint8 // IFLA_OPERSTATE
	mac                   net.HardwareAddr
}

func (l device) up() bool { return l.flags&unix.IFF_UP != 0 }

// device is the answer to a linkRequest.
func (a answer) device() (l device, err error) {
	if a.err != nil {
		return l, a.err
	}
	if len(a.data) < unix.SizeofIfInfomsg {
		return l, fmt.Errorf("netlink: link of %d bytes: %w", len(a.data), unix.EBADMSG)
	}
	l.index = int(int32(binary.NativeEndian.Uint32(a.data[4:]))) // struct ifinfomsg, rtnetlink(7)
	l.flags = binary.NativeEndian.Uint32(a.data[8:])
	err = attributes(a.data[unix.SizeofIfInfomsg:], func(kind uint16, v []byte) error {
		switch kind {
		case unix.IFLA_IFNAME:
			l.name = text(v)
		case unix.IFLA_ADDRESS:
			if len(bytes.Trim(v, "\x00")) > 0 { // lo has none, and a bridge that never had a port
				l.mac = bytes.Clone(v)
			}
		case unix.IFLA_LINK:
			l.parent = int(number(v))
		case unix.IFLA_MASTER:
			l.master = int(number(v))
		case unix.IFLA_GROUP:
			l.group = number(v)
		case unix.IFLA_PROMISCUITY:
			l.promisc = number(v)
		case unix.IFLA_OPERSTATE:
			if len(v) == 1 {
				l.oper = v[0]
			}
		case unix.IFLA_PROP_LIST:
			return attributes(v, func(kind uint16, v []byte) error {
				if kind == unix.IFLA_ALT_IFNAME {
					l.also = append(l.also, text(v))
				}
				return nil
			})
		case unix.IFLA_LINKINFO:
			return attributes(v, func(kind uint16, v []byte) error {
				if kind == nl.IFLA_INFO_KIND {
					l.kind = text(v)
				}
				return nil
			})
		}
		return nil
	})
	return l, err
}

// attributes tells f of each attribute in b: struct rtattr, rtnetlink(3).
func attributes(b []byte, f func(kind uint16, v []byte) error) error {
	for len(b) >= unix.SizeofRtAttr {
		size, kind := int(binary.NativeEndian.Uint16(b)), binary.NativeEndian.Uint16(b[2:])
		if size < unix.SizeofRtAttr || size > len(b) {
			return fmt.Errorf("netlink: attribute of %d bytes in %d: %w", size, len(b), unix.EBADMSG)
		}
		if err := f(kind&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[unix.SizeofRtAttr:size]); err != nil {
			return err
		}
		b = b[min(len(b), (size+unix.RTA_ALIGNTO-1)&^(unix.RTA_ALIGNTO-1)):]
	}
	return nil
}

func text(v []byte) string { return string(bytes.TrimRight(v, "\x00")) }

func number(v []byte) uint32 {
	if len(v) != 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(v)
}
