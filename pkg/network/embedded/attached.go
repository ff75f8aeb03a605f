package embedded

import (
	"net"
	"net/netip"
	"slices"

	current "github.com/containernetworking/cni/pkg/types/100"
)

// Attached is what DEL needs of what Add returned, in a tenth of its memory: a node keeps one for each pod.
type Attached struct {
	host, mac string         // the host's end of the pair, as hostEnd finds it
	addrs     []netip.Prefix // of the pod's interface
}

// Keep returns it. Not ok: there is more in the result than that, or something is wrong with it.
func Keep(r *current.Result, ifname string) (_ Attached, ok bool) {
	if slices.ContainsFunc(r.IPs, func(ip *current.IPConfig) bool {
		i := ip.Interface
		return i != nil && (*i < 0 || *i >= len(r.Interfaces) || r.Interfaces[*i].Name != ifname || r.Interfaces[*i].Sandbox == "")
	}) {
		return Attached{}, false
	}
	addrs, err := prefixes(r.IPs)
	if err != nil {
		return Attached{}, false
	}
	a := Attached{addrs: slices.Clip(addrs)}
	if host := hostEnd(r, ifname); host != nil {
		a.host, a.mac = host.Name, host.Mac
	}
	return a, true
}

// Result is one that DEL does the same with as with the one that was kept.
func (a Attached) Result(netns, ifname string) *current.Result {
	r := &current.Result{CNIVersion: current.ImplementedSpecVersion, Interfaces: []*current.Interface{{Name: ifname, Sandbox: netns}}}
	if a.host != "" {
		r.Interfaces = append(r.Interfaces, &current.Interface{Name: a.host, Mac: a.mac})
	}
	for _, p := range a.addrs {
		ip := &current.IPConfig{Interface: current.Int(0)}
		ip.Address.IP, ip.Address.Mask = p.Addr().AsSlice(), net.CIDRMask(p.Bits(), p.Addr().BitLen())
		r.IPs = append(r.IPs, ip)
	}
	return r
}
