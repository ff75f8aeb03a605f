package embedded

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/network/netns"
)

// ensureBridge takes the bridge that is there, or makes it, and returns its index.
func (p *Plugins) ensureBridge(d *dialog, conf *bridgeConf) (int, error) {
	answers, err := d.do(linkRequest(conf.Bridge, 0))
	if err != nil {
		return 0, err
	}
	l, err := answers[0].device()
	if err == nil && conf.ready(l) {
		return l.index, nil
	}
	if err != nil && !notFound(err) {
		return 0, err
	}
	made, err := p.makeBridge(conf)
	if err != nil {
		return 0, err
	}
	return made.Attrs().Index, nil
}

// ready tells whether l is the configured bridge, and nothing about it is to be changed.
func (conf *bridgeConf) ready(l device) bool {
	return (l.name == conf.Bridge || slices.Contains(l.also, conf.Bridge)) && l.kind == "bridge" && l.up() && (!conf.PromiscMode || l.promisc != 0)
}

func (p *Plugins) makeBridge(conf *bridgeConf) (l netlink.Link, err error) {
	h, err := handle()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	p.shared.mu.Lock()
	defer p.shared.mu.Unlock()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = conf.Bridge, conf.MTU
	if err := h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, fmt.Errorf("make it: %w", err)
	}
	if l, err = h.LinkByName(conf.Bridge); err != nil {
		return nil, err
	}
	if l.Type() != "bridge" {
		return nil, fmt.Errorf("the interface exists and is not a bridge but a %s: %w", l.Type(), errdefs.ErrFailedPrecondition)
	}
	if conf.PromiscMode {
		if err := h.SetPromiscOn(l); err != nil {
			return nil, fmt.Errorf("promiscuous mode: %w", err)
		}
	}
	// The routes on it are ours. Missing where IPv6 is disabled.
	_ = netns.SetSysctl("ipv6/conf/"+conf.Bridge+"/accept_ra", "0")
	if !conf.EnableDAD {
		// Or its link-local address is tentative for a second, and the host asks for no pod's hardware address.
		_ = netns.SetSysctl("ipv6/conf/"+conf.Bridge+"/accept_dad", "0")
	}
	if err := h.LinkSetUp(l); err != nil {
		return nil, fmt.Errorf("up: %w", err)
	}
	return l, nil
}

// ensureAddr settles a gateway address of the bridge. was is the answer to addrRequest for it. The caller has held shared since
// before that request: of two networks with addresses that exclude each other, one is first.
func ensureAddr(bridge int, conf *bridgeConf, gw netip.Prefix, was error) error {
	if errors.Is(was, unix.EEXIST) {
		return nil
	}
	if was != nil {
		return fmt.Errorf("gateway address %s: %w", gw, was)
	}
	h, err := handle()
	if err != nil {
		return err
	}
	defer h.Close()
	br, err := h.LinkByIndex(bridge)
	if err != nil {
		return err
	}
	if err := newAddr(h, br, conf, gw); err != nil {
		return errors.Join(err, h.AddrDel(br, gatewayAddr(gw)))
	}
	return nil
}

// enableForwarding lets the host forward what comes to its gateway addresses.
func enableForwarding(gateways []netip.Prefix) error {
	for _, gw := range gateways {
		sysctl := "ipv4/ip_forward"
		if gw.Addr().Is6() {
			sysctl = "ipv6/conf/all/forwarding"
		}
		if err := netns.SetSysctl(sysctl, "1"); err != nil {
			return fmt.Errorf("forwarding: %w", err)
		}
	}
	return nil
}

func gatewayAddr(gw netip.Prefix) *netlink.Addr {
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: gw.Addr().AsSlice(), Mask: net.CIDRMask(gw.Bits(), gw.Addr().BitLen())}}
	if gw.Addr().Is6() {
		addr.Flags = unix.IFA_F_NODAD // else it is tentative until the first port has been up for a second
	}
	return addr
}

// newAddr settles what a new address means for those that the bridge has.
func newAddr(h *netlink.Handle, br netlink.Link, conf *bridgeConf, gw netip.Prefix) error {
	family := netlink.FAMILY_V4
	if gw.Addr().Is6() {
		family = netlink.FAMILY_V6
	}
	present, err := addresses(h, br, family)
	if err != nil {
		return fmt.Errorf("addresses: %w", err)
	}
	for _, a := range present {
		ip, ok := netip.AddrFromSlice(a.IP)
		ones, _ := a.Mask.Size()
		other := netip.PrefixFrom(ip.Unmap(), ones)
		// IPv6 addresses of other subnets may stay, as with the reference plugin.
		if !ok || other == gw || conf.KeepAddresses || gw.Addr().Is6() && !other.Overlaps(gw) {
			continue
		}
		if !conf.ForceAddress {
			return fmt.Errorf("it has the address %s, and %s is wanted (forceAddress replaces it): %w", other, gw, errdefs.ErrFailedPrecondition)
		}
		if err := h.AddrDel(br, &a); err != nil {
			return fmt.Errorf("remove address %s: %w", other, err)
		}
	}
	// Set its hardware address to what it is, now that it has the pod's port, or it follows the lowest one of its ports.
	if err := h.LinkSetHardwareAddr(br, br.Attrs().HardwareAddr); err != nil {
		return fmt.Errorf("hardware address: %w", err)
	}
	return nil
}

// configure brings the pod's interface up with what r says; the calling thread is in the pod's namespace.
func configure(ifname string, conf *bridgeConf, r *current.Result) error {
	h, err := handle()
	if err != nil {
		return err
	}
	defer h.Close()
	l, err := h.LinkByName(ifname)
	if err != nil {
		return fmt.Errorf("%s: %w", ifname, err)
	}
	if r == nil {
		return wrap(ifname+" up", h.LinkSetUp(l))
	}
	dad := "0"
	if conf.EnableDAD {
		dad = "1"
		_ = netns.SetSysctl("ipv6/conf/"+ifname+"/enhanced_dad", "1")
	}
	_ = netns.SetSysctl("ipv6/conf/"+ifname+"/accept_dad", dad)
	_ = netns.SetSysctl("ipv4/conf/"+ifname+"/arp_notify", "1")
	var gw4, gw6 net.IP
	v6 := false
	for _, ip := range r.IPs {
		addr := &netlink.Addr{IPNet: &ip.Address}
		if ip.Address.IP.To4() == nil {
			if !v6 {
				v6 = true
				if err := enableIPv6(ifname); err != nil {
					return err
				}
			}
			if !conf.EnableDAD {
				addr.Flags = unix.IFA_F_NODAD
			}
		}
		if err := h.AddrAdd(l, addr); err != nil {
			return fmt.Errorf("address %s on %s: %w", ip.Address.String(), ifname, err)
		}
		switch {
		case ip.Gateway.To4() != nil && gw4 == nil:
			gw4 = ip.Gateway
		case ip.Gateway != nil && ip.Gateway.To4() == nil && gw6 == nil:
			gw6 = ip.Gateway
		}
	}
	if silent(conf, r) {
		if err := silence(l.Attrs().Index); err != nil {
			return fmt.Errorf("%s: %w", ifname, err)
		}
	}
	if err := h.LinkSetUp(l); err != nil {
		return fmt.Errorf("%s up: %w", ifname, err)
	}
	if v6 && conf.EnableDAD {
		if err := settle(h, l); err != nil {
			return err
		}
	}
	return addRoutes(h, l, r, gw4, gw6)
}

func enableIPv6(ifname string) error {
	for _, s := range []struct{ path, value string }{
		{"ipv6/conf/lo/disable_ipv6", "0"}, {"ipv6/conf/" + ifname + "/disable_ipv6", "0"},
		{"ipv6/conf/" + ifname + "/keep_addr_on_down", "1"}, // or link down takes the addresses
	} {
		if err := netns.SetSysctl(s.path, s.value); err != nil {
			return fmt.Errorf("IPv6 on %s: %w", ifname, err)
		}
	}
	return nil
}

// settle waits for duplicate address detection.
func settle(h *netlink.Handle, l netlink.Link) error {
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		addrs, err := addresses(h, l, netlink.FAMILY_V6)
		if err != nil {
			return fmt.Errorf("addresses: %w", err)
		}
		tentative := false
		for _, a := range addrs {
			if a.Flags&unix.IFA_F_DADFAILED != 0 {
				return fmt.Errorf("address %s is in use on the link: %w", a.IP, errdefs.ErrAlreadyExists)
			}
			tentative = tentative || a.Flags&unix.IFA_F_TENTATIVE != 0
		}
		if !tentative {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("duplicate address detection on %s takes longer than 5 s: %w", l.Attrs().Name, errdefs.ErrUnavailable)
		}
	}
}

func addRoutes(h *netlink.Handle, l netlink.Link, r *current.Result, gw4, gw6 net.IP) error {
	for _, route := range r.Routes {
		gw := route.GW
		if gw == nil {
			if gw = gw6; route.Dst.IP.To4() != nil {
				gw = gw4
			}
		}
		n := netlink.Route{Dst: &route.Dst, LinkIndex: l.Attrs().Index, Gw: gw, Priority: route.Priority, MTU: route.MTU, AdvMSS: route.AdvMSS}
		if route.Table != nil {
			n.Table = *route.Table
		}
		if route.Scope != nil {
			n.Scope = netlink.Scope(*route.Scope)
		}
		if err := h.RouteAddEcmp(&n); err != nil {
			return fmt.Errorf("route to %s via %s: %w", route.Dst.String(), gw, err)
		}
	}
	return nil
}
