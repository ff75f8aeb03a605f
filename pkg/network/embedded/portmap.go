package embedded

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/network/nat"
	"github.com/seed-9a14075a/cri-server/pkg/network/netns"
)

// portmapConf is the plugin's own configuration.
type portmapConf struct {
	SNAT          *bool `json:"snat"`
	RuntimeConfig struct {
		PortMappings []struct {
			HostPort      int    `json:"hostPort"`
			ContainerPort int    `json:"containerPort"`
			Protocol      string `json:"protocol"`
			HostIP        string `json:"hostIP"`
		} `json:"portMappings"`
	} `json:"runtimeConfig"`
}

func (p *Plugins) portmap(c Call, base *conf, stdin []byte) (*current.Result, error) {
	var conf portmapConf
	if err := json.Unmarshal(stdin, &conf); err != nil {
		return nil, fmt.Errorf("portmap: configuration: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	switch c.Command {
	case "GC":
		return nil, wrap("portmap", p.collect(base))
	case "DEL":
		return nil, p.unforward(c, base, &conf)
	case "STATUS":
		return nil, nil
	}
	return p.forward(c, base, &conf)
}

// forward is ADD and CHECK.
func (p *Plugins) forward(c Call, base *conf, conf *portmapConf) (*current.Result, error) {
	if base.prev == nil {
		return nil, fmt.Errorf("portmap: needs the result of a plugin before it: %w", errdefs.ErrInvalidArgument)
	}
	maps, err := conf.mappings(c, base.prev)
	if err != nil {
		return nil, fmt.Errorf("portmap: %w", err)
	}
	if c.Command == "CHECK" {
		return nil, wrap("portmap", p.nat.Forwarded(owner(c, base.Name), maps))
	}
	if len(maps) == 0 && c.Command == "ADD" {
		return base.prev, nil
	}
	snat := conf.SNAT == nil || *conf.SNAT
	if err := p.nat.Forward(owner(c, base.Name), maps, snat); err != nil {
		return nil, fmt.Errorf("portmap: %w", err)
	}
	if err := p.afterForward(maps, snat); err != nil {
		return nil, fmt.Errorf("portmap: %w", err)
	}
	return base.prev, nil
}

// unforward is DEL.
func (p *Plugins) unforward(c Call, base *conf, conf *portmapConf) error {
	if len(conf.RuntimeConfig.PortMappings) == 0 {
		return nil
	}
	var maps []nat.Mapping
	if base.prev != nil {
		maps, _ = conf.mappings(c, base.prev) // nil looks through all
	}
	return wrap("portmap", p.nat.Unforward(owner(c, base.Name), maps))
}

// mappings returns one mapping of each port for each family that the pod has an address of and the host address allows.
func (conf *portmapConf) mappings(c Call, prev *current.Result) ([]nat.Mapping, error) {
	var v4, v6 netip.Addr
	for _, ip := range prev.IPs {
		if i := ip.Interface; i != nil && *i >= 0 && *i < len(prev.Interfaces) &&
			(prev.Interfaces[*i].Name != c.IfName || prev.Interfaces[*i].Sandbox == "") {
			continue
		}
		a, _ := netip.AddrFromSlice(ip.Address.IP)
		switch a = a.Unmap(); {
		case a.Is4() && !v4.IsValid():
			v4 = a
		case a.Is6() && !v6.IsValid():
			v6 = a
		}
	}
	var maps []nat.Mapping
	for _, m := range conf.RuntimeConfig.PortMappings {
		for name, port := range map[string]int{"host": m.HostPort, "container": m.ContainerPort} {
			if port < 1 || port > 65535 {
				return nil, fmt.Errorf("%s port %d: %w", name, port, errdefs.ErrInvalidArgument)
			}
		}
		var host netip.Addr
		if m.HostIP != "" {
			a, err := netip.ParseAddr(m.HostIP)
			if err != nil {
				return nil, fmt.Errorf("host address %q: %w", m.HostIP, errdefs.ErrInvalidArgument)
			}
			host = a.Unmap()
		}
		for _, pod := range []netip.Addr{v4, v6} {
			if !pod.IsValid() || host.IsValid() && host.Is4() != pod.Is4() {
				continue
			}
			n := nat.Mapping{Protocol: strings.ToLower(m.Protocol), HostPort: uint16(m.HostPort), To: netip.AddrPortFrom(pod, uint16(m.ContainerPort))}
			if host.IsValid() && !host.IsUnspecified() {
				n.HostIP = host
			}
			maps = append(maps, n)
		}
	}
	return maps, nil
}

// afterForward lets callers on localhost through and ends old UDP flows.
func (p *Plugins) afterForward(maps []nat.Mapping, snat bool) error {
	local := false
	for _, m := range maps {
		if snat && !local && m.To.Addr().Is4() {
			local = true
			if err := routeLocalnet(m.To.Addr()); err != nil {
				return err
			}
		}
		if m.Protocol == "udp" {
			// Flows that started before the mapping go on past it. Not worth the pod's start, as with the reference.
			if err := p.flows.flush(m); err != nil && p.Log != nil {
				p.Log.Warn("old UDP flows to a host port can't be ended", "port", m.String(), "err", err)
			}
		}
	}
	return nil
}

// routeLocalnet lets packets from 127.0.0.0/8 leave by the interface that leads to the pod (ip-sysctl: route_localnet);
// they are masqueraded on their way.
func routeLocalnet(pod netip.Addr) error {
	h, err := handle()
	if err != nil {
		return err
	}
	defer h.Close()
	routes, err := h.RouteGet(pod.AsSlice())
	if err != nil || len(routes) == 0 {
		return nil // no route, no way to it from localhost; the reference plugin lets it pass too
	}
	l, err := h.LinkByIndex(routes[0].LinkIndex)
	if err != nil {
		return fmt.Errorf("interface to %s: %w", pod, err)
	}
	return netns.SetSysctl("ipv4/conf/"+l.Attrs().Name+"/route_localnet", "1")
}

// flows is a connection to conntrack that stays open, for closing one of its kind is slow: see nat.Table.
type flows struct {
	mu sync.Mutex
	h  *netlink.Handle
}

func (f *flows) flush(m nat.Mapping) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.h == nil {
		h, err := netlink.NewHandle(unix.NETLINK_NETFILTER)
		if err != nil {
			return err
		}
		if err := h.SetSocketTimeout(netlinkTimeout); err != nil {
			h.Close()
			return err
		}
		f.h = h
	}
	filter := &netlink.ConntrackFilter{}
	if err := filter.AddProtocol(unix.IPPROTO_UDP); err != nil {
		return err
	}
	if err := filter.AddPort(netlink.ConntrackOrigDstPort, m.HostPort); err != nil {
		return err
	}
	family := netlink.InetFamily(unix.AF_INET)
	if m.To.Addr().Is6() {
		family = unix.AF_INET6
	}
	_, err := f.h.ConntrackDeleteFilters(netlink.ConntrackTable, family, filter)
	if err != nil {
		f.h.Close()
		f.h = nil
	}
	return err
}

func (f *flows) close() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.h != nil {
		f.h.Close()
		f.h = nil
	}
}
