package embedded

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
)

// bridgeCheck tells whether the attachment is as the last result says.
func (p *Plugins) bridgeCheck(ctx context.Context, c Call, conf *bridgeConf, stdin []byte) error {
	if conf.IPAM.Type != "" {
		if _, err := p.ipam(ctx, conf, c, stdin); err != nil {
			return err
		}
	}
	if conf.prev == nil {
		return fmt.Errorf("bridge: CHECK needs a prevResult: %w", errdefs.ErrInvalidArgument)
	}
	var pod *netlink.LinkAttrs
	err := inside(c.NetNS, func(h *netlink.Handle) error {
		l, err := h.LinkByName(c.IfName)
		if err != nil {
			return fmt.Errorf("%s: %w", c.IfName, err)
		}
		pod = l.Attrs()
		addrs, err := addresses(h, l, netlink.FAMILY_ALL)
		if err != nil {
			return fmt.Errorf("addresses of %s: %w", c.IfName, err)
		}
		have := map[string]bool{}
		for _, a := range addrs {
			have[a.IPNet.String()] = true
		}
		for _, ip := range conf.prev.IPs {
			own := ip.Interface == nil || *ip.Interface >= 0 && *ip.Interface < len(conf.prev.Interfaces) &&
				conf.prev.Interfaces[*ip.Interface].Name == c.IfName
			if own && !have[ip.Address.String()] {
				return fmt.Errorf("%s lacks the address %s: %w", c.IfName, ip.Address.String(), errdefs.ErrFailedPrecondition)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("bridge: %w", err)
	}
	h, err := handle()
	if err != nil {
		return fmt.Errorf("bridge: %w", err)
	}
	defer h.Close()
	br, err := h.LinkByName(conf.Bridge)
	if err != nil {
		return fmt.Errorf("bridge %s: %w", conf.Bridge, err)
	}
	host, err := h.LinkByIndex(pod.ParentIndex)
	if err != nil {
		return fmt.Errorf("bridge: host end of %s: %w", c.IfName, err)
	}
	if host.Attrs().MasterIndex != br.Attrs().Index {
		return fmt.Errorf("bridge: %s is not a port of %s: %w", host.Attrs().Name, conf.Bridge, errdefs.ErrFailedPrecondition)
	}
	return nil
}
