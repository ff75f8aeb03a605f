package embedded

import (
	"fmt"

	"github.com/containerd/errdefs"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"

	"github.com/seed-9a14075a/cri-server/pkg/network/netns"
)

// loopback brings lo up, and down again on DEL. It ignores the interface name it is given, as the reference does.
func loopback(c Call, base *conf) (*current.Result, error) {
	switch c.Command {
	case "STATUS", "GC":
		return nil, nil
	case "DEL":
		if c.NetNS == "" {
			return nil, nil
		}
		err := inside(c.NetNS, func(h *netlink.Handle) error {
			lo, err := h.LinkByName("lo")
			if err != nil {
				return err
			}
			return h.LinkSetDown(lo)
		})
		if gone(c.NetNS, err) {
			err = nil
		}
		return nil, wrap("loopback", err)
	}
	r := &current.Result{CNIVersion: current.ImplementedSpecVersion,
		Interfaces: []*current.Interface{{Name: "lo", Mac: "00:00:00:00:00:00", Sandbox: c.NetNS}}}
	err := inside(c.NetNS, func(h *netlink.Handle) error {
		lo, err := h.LinkByName("lo")
		if err != nil {
			return err
		}
		if c.Command == "CHECK" {
			if lo.Attrs().RawFlags&1 == 0 { // IFF_UP
				return fmt.Errorf("lo is down: %w", errdefs.ErrFailedPrecondition)
			}
			return nil
		}
		if err := h.LinkSetUp(lo); err != nil {
			return err
		}
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			addrs, err := addresses(h, lo, family)
			if err != nil {
				return err
			}
			for i, a := range addrs {
				if !a.IP.IsLoopback() {
					return fmt.Errorf("lo has the address %s: %w", a.IP, errdefs.ErrFailedPrecondition)
				}
				if i == 0 {
					r.IPs = append(r.IPs, &current.IPConfig{Interface: current.Int(0), Address: *a.IPNet})
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, wrap("loopback", err)
	}
	if base.prev != nil {
		return base.prev, nil
	}
	return r, nil
}

func wrap(stage string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", stage, err)
	}
	return nil
}

// inside runs f on a thread in the namespace at path, with a netlink handle there.
func inside(path string, f func(h *netlink.Handle) error) error {
	return netns.Do(path, func() error {
		h, err := handle()
		if err != nil {
			return err
		}
		defer h.Close()
		return f(h)
	})
}
