package network

import (
	"fmt"

	"github.com/vishvananda/netlink"

	"github.com/seed-9a14075a/cri-server/pkg/network/netns"
)

// InterfaceCounters are what one interface has received and sent since it was made.
type InterfaceCounters struct {
	Name                                 string
	RxBytes, RxErrors, TxBytes, TxErrors uint64
}

// Counters reads the counters of all interfaces in a network namespace with one netlink dump.
func Counters(netnsPath string) ([]InterfaceCounters, error) {
	var list []InterfaceCounters
	err := netns.Do(netnsPath, func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			a := l.Attrs()
			c := InterfaceCounters{Name: a.Name}
			if s := a.Statistics; s != nil {
				c.RxBytes, c.RxErrors, c.TxBytes, c.TxErrors = s.RxBytes, s.RxErrors, s.TxBytes, s.TxErrors
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
