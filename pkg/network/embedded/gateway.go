package embedded

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// gateway makes the bridge the pod's gateway, sees to it that its port forwards, and returns it.
func (p *Plugins) gateway(d *dialog, conf *bridgeConf, bridge, port int, gateways []netip.Prefix) (br device, err error) {
	br, host, err := p.gatewayAddrs(d, conf, bridge, port, gateways)
	if notFound(err) || err == nil && !conf.ready(br) {
		return br, errors.Join(errOtherBridge, err)
	}
	if err == nil && !conf.DisableContainerInterface {
		err = waitUp(d, host)
	}
	if err == nil {
		p.shared.remember(conf.Bridge, br.index)
	}
	return br, err
}

// gatewayAddrs gives the bridge its addresses, and returns bridge and port as they are then: the bridge's hardware address may
// have followed that of its first port. In the common case, where this process has settled all of them before and they are
// there, nobody waits for anybody.
func (p *Plugins) gatewayAddrs(d *dialog, conf *bridgeConf, bridge, port int, gateways []netip.Prefix) (br, host device, err error) {
	var reqs []*nl.NetlinkRequest
	for _, gw := range gateways {
		reqs = append(reqs, addrRequest(bridge, gatewayAddr(gw)))
	}
	// That the port is looked at brings it up, if it can be, and so gives it the route (Linux 6.6; else waitUp sees to it). Whether
	// there was one does not matter: there may be no IPv6.
	links := []*nl.NetlinkRequest{linkRequest("", bridge), linkRequest("", port), portRouteRequest(port)}
	all := append(reqs, links...)
	added := make([]bool, len(gateways))
	if p.shared.settled(bridge, gateways) {
		answers, err := d.do(all...)
		if err != nil {
			return br, host, err
		}
		there := true
		for i := range gateways {
			added[i] = answers[i].err == nil // it had gone
			there = there && errors.Is(answers[i].err, unix.EEXIST)
		}
		// What is not settled any more is being settled anew.
		if there && p.shared.settled(bridge, gateways) {
			if err := enableForwarding(gateways); err != nil {
				return br, host, err
			}
			return devices(answers[len(gateways):])
		}
	}
	p.shared.mu.Lock()
	defer p.shared.mu.Unlock()
	p.shared.unsettle(bridge, gateways)
	answers, err := d.do(all...)
	if err != nil {
		return br, host, err
	}
	now := answers[len(gateways):]
	for i, gw := range gateways {
		was := answers[i].err
		if added[i] && errors.Is(was, unix.EEXIST) {
			was = nil // nobody has looked at what it means
		}
		if err := ensureAddr(bridge, conf, gw, was); err != nil {
			return br, host, err
		}
		if was == nil { // which may have changed the bridge
			now = nil
		}
	}
	if err := enableForwarding(gateways); err != nil {
		return br, host, err
	}
	p.shared.settle(bridge, gateways)
	if now == nil {
		if now, err = d.do(links...); err != nil {
			return br, host, err
		}
	}
	return devices(now)
}

// devices are a bridge and its port, of the answers to two linkRequests.
func devices(answers []answer) (br, host device, err error) {
	if br, err = answers[0].device(); err != nil {
		return br, host, err
	}
	if host, err = answers[1].device(); err != nil {
		return br, host, fmt.Errorf("port: %w", err)
	}
	return br, host, nil
}

// gateways completes the result as the reference does: interface 2, the subnet's first address as gateway where IPAM
// names none, a default route of each family. It returns the addresses for the bridge.
func (conf *bridgeConf) gateways(r *current.Result, addrs []netip.Prefix) []netip.Prefix {
	var gws []netip.Prefix
	defaults := map[bool]bool{}
	for i, ip := range r.IPs {
		ip.Interface = current.Int(2)
		v4 := addrs[i].Addr().Is4()
		if ip.Gateway == nil && conf.IsGateway {
			ip.Gateway = addrs[i].Masked().Addr().Next().AsSlice()
		}
		everywhere := net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
		if v4 {
			everywhere = net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
		}
		if conf.IsDefaultGateway && !defaults[v4] {
			defaults[v4] = true
			found := false
			for _, route := range r.Routes {
				found = found || route.GW != nil && route.Dst.String() == everywhere.String()
			}
			if !found {
				r.Routes = append(r.Routes, &types.Route{Dst: everywhere, GW: ip.Gateway})
			}
		}
		if gw, ok := netip.AddrFromSlice(ip.Gateway); ok && conf.IsGateway {
			gws = append(gws, netip.PrefixFrom(gw.Unmap(), addrs[i].Bits()))
		}
	}
	return gws
}
