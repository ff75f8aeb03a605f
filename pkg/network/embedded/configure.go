package embedded

import (
	"fmt"
	"net"
	"slices"

	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/network/netns"
)

// configurePod brings the pod's interface up with what r says. index is the interface's in the pod, 0 if it is not known.
func configurePod(c Call, ns int, index int, conf *bridgeConf, r *current.Result) error {
	if index > 0 && simple(conf, r) {
		if fd := netns.TakeSocket(c.NetNS); fd >= 0 {
			return configureByIndex(fd, c.IfName, index, conf, r)
		}
	}
	return netns.DoFD(ns, func() error { return configure(c.IfName, conf, r) })
}

// simple tells whether configureByIndex can do what r says: IPv4 with plain routes, which needs no sysctl.
func simple(conf *bridgeConf, r *current.Result) bool {
	if conf.EnableDAD {
		return false
	}
	var gw net.IP
	for _, ip := range r.IPs {
		if ip.Address.IP.To4() == nil || len(ip.Address.Mask) != net.IPv4len && len(ip.Address.Mask) != net.IPv6len {
			return false
		}
		if gw == nil {
			gw = ip.Gateway.To4()
		}
	}
	for _, route := range r.Routes {
		if route.Dst.IP.To4() == nil || route.GW.To4() == nil && gw == nil || route.GW != nil && route.GW.To4() == nil ||
			route.MTU != 0 || route.AdvMSS != 0 || route.Priority != 0 || route.Table != nil || route.Scope != nil {
			return false
		}
	}
	return true
}

// configureByIndex is configure for a simple result, by a socket in the pod's namespace, which it closes: nobody enters the
// namespace, and one system call brings it all there. What configure does by sysctls comes with the namespace (accept_dad,
// see netns.Prepare) or with the link (arp_notify).
func configureByIndex(fd int, ifname string, index int, conf *bridgeConf, r *current.Result) error {
	d, err := newDialog(fd)
	if err != nil {
		return err
	}
	defer d.close()
	reqs, what := []*nl.NetlinkRequest{notifyRequest(index)}, []string{"arp_notify of " + ifname}
	add := func(req *nl.NetlinkRequest, of string) { reqs, what = append(reqs, req), append(what, of) }
	if silent(conf, r) {
		add(silentRequest(index), "")
	}
	var gw net.IP
	for _, ip := range r.IPs {
		add(addrRequest(index, &netlink.Addr{IPNet: &ip.Address}), "address "+ip.Address.String()+" on "+ifname)
		if gw == nil {
			gw = ip.Gateway.To4()
		}
	}
	add(changeRequest(index, unix.IFF_UP, unix.IFF_UP), ifname+" up")
	for _, route := range r.Routes {
		via := route.GW.To4()
		if via == nil {
			via = gw
		}
		add(routeRequest(index, &route.Dst, via), "route to "+route.Dst.String()+" via "+via.String())
	}
	reqs[len(reqs)-1].Flags |= unix.NLM_F_ACK
	answers, err := d.do(reqs...)
	if err != nil {
		return err
	}
	for i, a := range answers {
		if a.err != nil && what[i] != "" {
			return fmt.Errorf("%s: %w", what[i], a.err)
		}
	}
	return nil
}

// silent tells whether a pod has no use for IPv6: it is given none, and the router on its link is the bridge. Behind a bridge that
// is none there may be another, which the pod must ask for, or it has its IPv6 address only with what that one tells all, some
// ten minutes later at the worst (RFC 4861, 6.2.1, MaxRtrAdvInterval).
func silent(conf *bridgeConf, r *current.Result) bool {
	is6 := func(ip *current.IPConfig) bool { return ip.Address.IP.To4() == nil }
	return conf.IsGateway && len(r.IPs) > 0 && !slices.ContainsFunc(r.IPs, is6)
}

// silentRequest keeps the interface of a silent pod from making itself a link-local address when it comes up. With
// it the pod would ask for a router, again and again, and report the multicast group of its address: frames that the bridge copies
// to each of its ports, most of them with the lock of all network changes held. On a node of 500 pods that is a millisecond of
// each start in which no other pod's network can be made. Nothing depends on it: without IPv6 it is refused.
func silentRequest(index int) *nl.NetlinkRequest { return addressless(changeRequest(index, 0, 0)) }

// silence does what silentRequest tells, in the namespace of the calling thread.
func silence(index int) error {
	d, err := dial()
	if err != nil {
		return err
	}
	defer d.close()
	req := silentRequest(index)
	req.Flags |= unix.NLM_F_ACK
	_, err = d.do(req)
	return err
}

// notifyRequest sets the sysctl net.ipv4.conf.IFACE.arp_notify: IFLA_INET_CONF, Linux 2.6.38.
func notifyRequest(index int) *nl.NetlinkRequest {
	const inetConf, arpNotify = 1, 22 // IFLA_INET_CONF, IPV4_DEVCONF_ARP_NOTIFY
	req := changeRequest(index, 0, 0)
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	spec.AddRtAttr(unix.AF_INET, nil).AddRtAttr(inetConf, nil).AddRtAttr(arpNotify, nl.Uint32Attr(1))
	req.AddData(spec)
	return req
}

// addrRequest adds an address, as netlink.AddrAdd does; EEXIST when the link has it. It is not answered when it succeeds.
func addrRequest(index int, a *netlink.Addr) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	ip, family := a.IP.To4(), unix.AF_INET
	if ip == nil {
		ip, family = a.IP.To16(), unix.AF_INET6
	}
	ones, bits := a.Mask.Size()
	if bits == 128 && family == unix.AF_INET {
		ones -= 96
	}
	msg := nl.NewIfAddrmsg(family)
	msg.Index, msg.Prefixlen = uint32(index), uint8(ones)
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFA_LOCAL, ip))
	req.AddData(nl.NewRtAttr(unix.IFA_ADDRESS, ip))
	if a.Flags != 0 {
		msg.IfAddrmsg.Flags = uint8(a.Flags)
		req.AddData(nl.NewRtAttr(unix.IFA_FLAGS, nl.Uint32Attr(uint32(a.Flags))))
	}
	if family == unix.AF_INET && ones < 31 {
		broadcast := make(net.IP, net.IPv4len)
		mask := net.CIDRMask(ones, 32)
		for i := range broadcast {
			broadcast[i] = ip[i] | ^mask[i]
		}
		req.AddData(nl.NewRtAttr(unix.IFA_BROADCAST, broadcast))
	}
	return req
}

// routeRequest adds a route to the main table, beside others to the same destination, as netlink.RouteAddEcmp does.
func routeRequest(index int, dst *net.IPNet, gw net.IP) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.RTM_NEWROUTE, unix.NLM_F_CREATE)
	msg := nl.NewRtMsg()
	ones, bits := dst.Mask.Size()
	if bits == 128 {
		ones -= 96
	}
	msg.Family, msg.Dst_len = unix.AF_INET, uint8(ones)
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.RTA_DST, dst.IP.To4()))
	req.AddData(nl.NewRtAttr(unix.RTA_GATEWAY, gw.To4()))
	req.AddData(nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(index))))
	return req
}
