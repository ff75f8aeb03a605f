package embedded

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/containerd/errdefs"
	current "github.com/containernetworking/cni/pkg/types/100"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/network/hostlocal"
	"github.com/seed-9a14075a/cri-server/pkg/network/netns"
	"github.com/seed-9a14075a/cri-server/pkg/operation"
)

// bridgeConf is the plugin's own configuration.
type bridgeConf struct {
	*conf                     `json:"-"`
	Bridge                    string `json:"bridge"`
	IsGateway                 bool   `json:"isGateway"`
	IsDefaultGateway          bool   `json:"isDefaultGateway"`
	ForceAddress              bool   `json:"forceAddress"`
	IPMasq                    bool   `json:"ipMasq"`
	MTU                       int    `json:"mtu"`
	HairpinMode               bool   `json:"hairpinMode"`
	PromiscMode               bool   `json:"promiscMode"`
	EnableDAD                 bool   `json:"enabledad"`
	DisableContainerInterface bool   `json:"disableContainerInterface"`
	PortIsolation             bool   `json:"portIsolation"`
	// KeepAddresses is not the reference's: a gateway address of another subnet is added to those the bridge has,
	// where forceAddress replaces them and the default refuses. The built-in network uses it, so that pods of the
	// former pod range keep their gateway.
	KeepAddresses bool `json:"keepAddresses"`
	Args          struct {
		CNI struct {
			MAC string `json:"mac"`
		} `json:"cni"`
	} `json:"args"`
	RuntimeConfig struct {
		MAC string `json:"mac"`
	} `json:"runtimeConfig"`

	mac    net.HardwareAddr  // nil: a random one
	leases *hostlocal.Config // of IPAM, where it was read already
}

func parseBridge(base *conf, args string, stdin []byte) (*bridgeConf, error) {
	c := &bridgeConf{conf: base, Bridge: "cni0"}
	if err := json.Unmarshal(stdin, c); err != nil {
		return nil, fmt.Errorf("bridge: configuration: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	c.IsGateway = c.IsGateway || c.IsDefaultGateway
	switch {
	case c.HairpinMode && c.PromiscMode:
		return nil, fmt.Errorf("bridge: hairpinMode and promiscMode exclude each other: %w", errdefs.ErrInvalidArgument)
	case c.IPAM.Type != "" && c.DisableContainerInterface:
		return nil, fmt.Errorf("bridge: ipam and disableContainerInterface exclude each other: %w", errdefs.ErrInvalidArgument)
	case c.MTU < 0 || c.MTU > 65535:
		return nil, fmt.Errorf("bridge: mtu %d: %w", c.MTU, errdefs.ErrInvalidArgument)
	case len(c.Bridge) == 0 || len(c.Bridge) >= unix.IFNAMSIZ:
		return nil, fmt.Errorf("bridge: name %q must have 1 to %d characters: %w", c.Bridge, unix.IFNAMSIZ-1, errdefs.ErrInvalidArgument)
	}
	mac := argument(args, "MAC")
	for _, m := range []string{c.Args.CNI.MAC, c.RuntimeConfig.MAC} {
		if m != "" {
			mac = m
		}
	}
	if mac != "" {
		m, err := net.ParseMAC(mac)
		if err != nil || len(m) != 6 {
			return nil, fmt.Errorf("bridge: hardware address %q: %w", mac, errdefs.ErrInvalidArgument)
		}
		c.mac = m
	}
	return c, nil
}

func (p *Plugins) bridge(ctx context.Context, c Call, base *conf, stdin []byte) (*current.Result, error) {
	conf, err := parseBridge(base, c.Args, stdin)
	if err != nil {
		return nil, err
	}
	switch c.Command {
	case "ADD":
		return p.bridgeAdd(ctx, c, conf, stdin)
	case "DEL":
		return nil, p.bridgeDel(ctx, c, conf, stdin)
	case "CHECK":
		return nil, p.bridgeCheck(ctx, c, conf, stdin)
	}
	// STATUS, GC
	if conf.IPAM.Type != "" {
		_, err = p.ipam(ctx, conf, c, stdin)
	}
	if c.Command == "GC" {
		err = errors.Join(err, p.collect(base), deleteGroup(deadGroup))
	}
	return nil, err
}

// errOtherBridge: the link that was the bridge is not, or not as it is to be.
var errOtherBridge = fmt.Errorf("it has been replaced or changed meanwhile: %w", errdefs.ErrUnavailable)

func (p *Plugins) bridgeAdd(ctx context.Context, c Call, conf *bridgeConf, stdin []byte) (*current.Result, error) {
	// Whether it is still the bridge is seen at the end, where it is looked at anyway.
	index := p.shared.bridge(conf.Bridge)
	r, err := p.bridgeAddTo(ctx, c, conf, stdin, index)
	if index > 0 && errors.Is(err, errOtherBridge) {
		p.shared.remember(conf.Bridge, 0)
		r, err = p.bridgeAddTo(ctx, c, conf, stdin, 0)
	}
	return r, err
}

// bridgeAddTo attaches the pod to the bridge with an index, or to that of the configured name, which is made if it is missing, for
// index 0.
func (p *Plugins) bridgeAddTo(ctx context.Context, c Call, conf *bridgeConf, stdin []byte, bridge int) (_ *current.Result, err error) {
	op := operation.FromContext(ctx)
	end := op.Part("network: veth")
	ns, err := netns.Open(c.NetNS)
	if err != nil {
		return nil, fmt.Errorf("bridge: %w", err)
	}
	defer unix.Close(ns)
	d, err := p.dialogs.get()
	if err != nil {
		return nil, fmt.Errorf("bridge: %w", err)
	}
	defer func() {
		if err != nil { // perhaps of the exchange
			d.close()
			return
		}
		p.dialogs.put(d)
	}()
	known := bridge > 0
	if !known {
		if bridge, err = p.ensureBridge(d, conf); err != nil {
			return nil, fmt.Errorf("bridge %s: %w", conf.Bridge, err)
		}
	}
	v, host, err := p.addVeth(d, c, conf, bridge, ns)
	if err != nil {
		if known && notBridge(err) { // nothing was made
			err = errors.Join(errOtherBridge, err)
		}
		return nil, fmt.Errorf("bridge %s: %w", conf.Bridge, err)
	}
	defer func() {
		if err != nil {
			undo := c
			undo.Command = "DEL" // IPAM is asked by it
			p.shared.retired(v.host)
			err = errors.Join(err, p.bridgeDel(context.WithoutCancel(ctx), undo, conf, stdin))
		}
	}()
	p.shared.made(v.host, host.index)
	r := &current.Result{CNIVersion: current.ImplementedSpecVersion, Interfaces: []*current.Interface{
		{Name: conf.Bridge}, {Name: v.host, Mac: v.hostMAC.String()}, {Name: c.IfName, Mac: v.podMAC.String(), Sandbox: c.NetNS}}}
	end()
	end = op.Part("network: address")
	var gateways []netip.Prefix
	if conf.IPAM.Type != "" {
		ip, err := p.ipam(ctx, conf, c, stdin)
		if err != nil {
			return nil, err
		}
		end()
		end = op.Part("network: layer 3")
		r.IPs, r.Routes, r.DNS = ip.IPs, ip.Routes, ip.DNS
		if gateways, err = p.layer3(c, conf, ns, host.parent, r); err != nil {
			return nil, fmt.Errorf("bridge %s: %w", conf.Bridge, err)
		}
	} else if !conf.DisableContainerInterface {
		err := netns.DoFD(ns, func() error { return configure(c.IfName, conf, nil) })
		if err != nil {
			return nil, fmt.Errorf("bridge: %w", err)
		}
	}
	end()
	defer op.Part("network: gateway")()
	br, err := p.gateway(d, conf, bridge, host.index, gateways)
	if err != nil {
		return nil, fmt.Errorf("bridge %s: %w", conf.Bridge, err)
	}
	r.Interfaces[0].Name, r.Interfaces[0].Mac = br.name, br.mac.String()
	if dns := conf.DNS; dns.Nameservers != nil || dns.Search != nil || dns.Options != nil || dns.Domain != "" {
		r.DNS = dns
	}
	return r, nil
}

// notBridge tells whether a pair could not be made because there is no link to be its bridge, or one that is none.
func notBridge(err error) bool {
	return slices.ContainsFunc([]error{unix.EINVAL, unix.ENODEV, unix.EOPNOTSUPP}, func(e error) bool { return errors.Is(err, e) })
}

// addVeth makes the pair. A link of the same name in the pod that an earlier DEL left to be deleted is deleted now.
func (p *Plugins) addVeth(d *dialog, c Call, conf *bridgeConf, bridge, ns int) (v veth, host device, err error) {
	v = veth{pod: c.IfName, hostMAC: hardwareAddr(), podMAC: conf.mac, mtu: conf.MTU, netns: ns,
		master: bridge, hairpin: conf.HairpinMode, alone: conf.PortIsolation}
	if v.podMAC == nil {
		v.podMAC = hardwareAddr()
	}
	for try := 0; ; try++ {
		v.host = hostName()
		host, err = v.create(d)
		if err == nil || !errors.Is(err, unix.EEXIST) || try == 5 {
			return v, host, err
		}
		if answers, err := d.do(linkRequest(v.host, 0)); err != nil {
			return v, host, err
		} else if answers[0].err == nil {
			continue // the random name is taken
		}
		if err := removeDead(d, ns, c.IfName); err != nil {
			return v, host, err
		}
	}
}

// layer3 gives the pod its addresses and routes, and returns the gateways' addresses, which are the bridge's. index is the
// interface's in the pod.
func (p *Plugins) layer3(c Call, conf *bridgeConf, ns, index int, r *current.Result) ([]netip.Prefix, error) {
	if len(r.IPs) == 0 {
		return nil, fmt.Errorf("ipam plugin %s gave no address: %w", conf.IPAM.Type, errdefs.ErrFailedPrecondition)
	}
	addrs, err := prefixes(r.IPs)
	if err != nil {
		return nil, err
	}
	gateways := conf.gateways(r, addrs)
	if err := configurePod(c, ns, index, conf, r); err != nil {
		return nil, err
	}
	if !conf.IsGateway {
		gateways = nil
	}
	if conf.IPMasq {
		if err := p.nat.Masquerade(owner(c, conf.Name), addrs); err != nil {
			return nil, fmt.Errorf("masquerade: %w", err)
		}
	}
	return gateways, nil
}

// bridgeDel undoes bridgeAdd as far as it got.
func (p *Plugins) bridgeDel(ctx context.Context, c Call, conf *bridgeConf, stdin []byte) error {
	var errs []error
	if conf.IPMasq {
		errs = append(errs, p.nat.Unmasquerade(owner(c, conf.Name), p.addresses(ctx, c, conf, stdin)))
	}
	// Before the addresses are given to others.
	errs = append(errs, p.retire(c, conf.prev))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("bridge %s: %w", conf.Bridge, err)
	}
	if conf.IPAM.Type != "" {
		_, err := p.ipam(ctx, conf, c, stdin)
		return err
	}
	return nil
}

// addresses are the attachment's, as far as the last result or the leases tell; nil if they don't.
func (p *Plugins) addresses(ctx context.Context, c Call, conf *bridgeConf, stdin []byte) []netip.Addr {
	var as []netip.Addr
	if conf.prev != nil {
		ps, err := prefixes(conf.prev.IPs)
		if err != nil {
			return nil
		}
		for _, pr := range ps {
			as = append(as, pr.Addr())
		}
		return as
	}
	if conf.IPAM.Type == "host-local" {
		if hl, err := hostlocal.Parse(stdin, c.Args, p.DataDir); err == nil {
			as, _ = hostlocal.Leases(ctx, hl, c.ContainerID, c.IfName)
		}
	}
	return as
}
