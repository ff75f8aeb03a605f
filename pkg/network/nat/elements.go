package nat

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// element is one element of a set as the kernel has it.
type element struct {
	key, data []byte
	chain     string // a verdict map's chain
	comment   string
}

// get returns the elements of a set: the one with that key, or all where key is nil. A missing set or element is no
// error. The nftables package can't ask for one element, nor say which errno a dump ended with.
func (t *Table) get(s *nftables.Set, key []byte) ([]element, error) {
	if _, err := t.dial(); err != nil {
		return nil, err
	}
	enc := netlink.NewAttributeEncoder()
	enc.String(unix.NFTA_SET_ELEM_LIST_TABLE, s.Table.Name)
	enc.String(unix.NFTA_SET_ELEM_LIST_SET, s.Name)
	flags := netlink.Request | netlink.Dump
	if key != nil {
		flags = netlink.Request
		enc.Nested(unix.NFTA_SET_ELEM_LIST_ELEMENTS, func(list *netlink.AttributeEncoder) error {
			list.Nested(unix.NFTA_LIST_ELEM, func(elem *netlink.AttributeEncoder) error {
				elem.Nested(unix.NFTA_SET_ELEM_KEY, func(k *netlink.AttributeEncoder) error {
					k.Bytes(unix.NFTA_DATA_VALUE, key)
					return nil
				})
				return nil
			})
			return nil
		})
	}
	attrs, err := enc.Encode()
	if err != nil {
		return nil, fmt.Errorf("nftables: %w", err)
	}
	replies, err := t.sockets[1].Execute(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETSETELEM, Flags: flags},
		Data:   append([]byte{byte(s.Table.Family), unix.NFNETLINK_V0, 0, 0}, attrs...), // struct nfgenmsg
	})
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		t.hangUp()
		return nil, fmt.Errorf("nftables: list %s: %w", s.Name, err)
	}
	var all []element
	for _, m := range replies {
		if len(m.Data) < 4 {
			continue
		}
		ad, err := netlink.NewAttributeDecoder(m.Data[4:])
		if err != nil {
			return nil, fmt.Errorf("nftables: list %s: %w", s.Name, err)
		}
		for ad.Next() {
			if ad.Type() == unix.NFTA_SET_ELEM_LIST_ELEMENTS {
				ad.Nested(func(list *netlink.AttributeDecoder) error {
					for list.Next() {
						var e element
						list.Nested(e.decode)
						all = append(all, e)
					}
					return nil
				})
			}
		}
		if err := ad.Err(); err != nil {
			return nil, fmt.Errorf("nftables: list %s: %w", s.Name, err)
		}
	}
	return all, nil
}

func (e *element) decode(ad *netlink.AttributeDecoder) error {
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_SET_ELEM_KEY:
			ad.Nested(func(v *netlink.AttributeDecoder) error {
				for v.Next() {
					e.key = bytes.Clone(v.Bytes())
				}
				return nil
			})
		case unix.NFTA_SET_ELEM_DATA:
			ad.Nested(e.decodeData)
		case unix.NFTA_SET_ELEM_USERDATA:
			e.comment, _ = userdata.GetString(ad.Bytes(), userdata.NFTNL_UDATA_SET_ELEM_COMMENT)
		}
	}
	return nil
}

func (e *element) decodeData(ad *netlink.AttributeDecoder) error {
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_DATA_VALUE:
			e.data = bytes.Clone(ad.Bytes())
		case unix.NFTA_DATA_VERDICT:
			ad.Nested(func(v *netlink.AttributeDecoder) error {
				for v.Next() {
					if v.Type() == unix.NFTA_VERDICT_CHAIN {
						e.chain = v.String()
					}
				}
				return nil
			})
		}
	}
	return nil
}

// pad fills v up to whole registers, as concatenations want it.
func pad(v ...byte) []byte {
	for len(v)%4 != 0 {
		v = append(v, 0)
	}
	return v
}

func portKey(proto byte, port uint16) []byte {
	return append(pad(proto), pad(binary.BigEndian.AppendUint16(nil, port)...)...)
}

func target(addr netip.Addr, port uint16) []byte {
	return append(addr.AsSlice(), pad(binary.BigEndian.AppendUint16(nil, port)...)...)
}
