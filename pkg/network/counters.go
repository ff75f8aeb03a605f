package network

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"

	"github.com/seed-9a14075a/cri-server/pkg/network/netns"
)

// InterfaceCounters are what one interface has received and sent since it was made.
type InterfaceCounters struct {
	Name                                    string
	RxBytes, RxPackets, RxErrors, RxDropped uint64
	TxBytes, TxPackets, TxErrors, TxDropped uint64
}

// Counters reads the counters of all interfaces in a network namespace with one netlink dump.
func Counters(netnsPath string) ([]InterfaceCounters, error) {
	var list []InterfaceCounters
	err := netns.Do(netnsPath, func() error {
		links, err := netlink.LinkList()
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) { // when links come and go meanwhile, one may be missing
			return err
		}
		for _, l := range links {
			a := l.Attrs()
			c := InterfaceCounters{Name: a.Name}
			if s := a.Statistics; s != nil {
				c.RxBytes, c.RxPackets, c.RxErrors, c.RxDropped = s.RxBytes, s.RxPackets, s.RxErrors, s.RxDropped
				c.TxBytes, c.TxPackets, c.TxErrors, c.TxDropped = s.TxBytes, s.TxPackets, s.TxErrors, s.TxDropped
			}
			list = append(list, c)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("interface counters of %s: %w", netnsPath, err)
	}
	return list, nil
}
