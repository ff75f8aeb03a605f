package embedded

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"

	"github.com/seed-9a14075a/cri-server/pkg/network/hostlocal"
)

// hostLocal runs host-local as a plugin.
func (p *Plugins) hostLocal(ctx context.Context, c Call, stdin []byte) (*current.Result, error) {
	conf, err := hostlocal.Parse(stdin, c.Args, p.DataDir)
	if err != nil {
		return nil, err
	}
	switch c.Command {
	case "ADD":
		return hostlocal.Add(ctx, conf, c.ContainerID, c.IfName)
	case "CHECK":
		return nil, hostlocal.Check(ctx, conf, c.ContainerID, c.IfName)
	case "DEL":
		_, err := hostlocal.Del(ctx, conf, c.ContainerID, c.IfName)
		return nil, err
	case "GC":
		base, err := parseConf("host-local", stdin)
		if err != nil {
			return nil, err
		}
		valid := validAttachments(base)
		return nil, hostlocal.GC(ctx, conf.Dir, func(id, ifname string) bool {
			return valid[types.GCAttachment{ContainerID: id, IfName: ifname}]
		})
	}
	return nil, nil
}

// ipam runs the IPAM plugin of a configuration.
func (p *Plugins) ipam(ctx context.Context, b *bridgeConf, c Call, stdin []byte) (*current.Result, error) {
	plugin := b.IPAM.Type
	if p.ownIPAM(plugin) {
		if b.leases != nil {
			switch c.Command {
			case "ADD":
				return hostlocal.Add(ctx, b.leases, c.ContainerID, c.IfName)
			case "DEL":
				_, err := hostlocal.Del(ctx, b.leases, c.ContainerID, c.IfName)
				return nil, err
			}
		}
		return p.hostLocal(ctx, c, stdin)
	}
	if p.Delegate == nil {
		return nil, fmt.Errorf("ipam plugin %q: %w", plugin, errdefs.ErrNotFound)
	}
	out, err := p.Delegate(ctx, plugin, c, stdin)
	if err != nil {
		return nil, fmt.Errorf("ipam plugin %s: %w", plugin, err)
	}
	if c.Command != "ADD" {
		return nil, nil
	}
	r, err := create.CreateFromBytes(out)
	if err == nil {
		var converted *current.Result
		if converted, err = current.NewResultFromResult(r); err == nil {
			return converted, nil
		}
	}
	c.Command = "DEL"
	_, undo := p.Delegate(context.WithoutCancel(ctx), plugin, c, stdin)
	return nil, errors.Join(fmt.Errorf("ipam plugin %s: result: %w", plugin, err), undo)
}

// ownIPAM tells whether an IPAM plugin runs in process.
func (p *Plugins) ownIPAM(plugin string) bool {
	return plugin == "host-local" && !slices.Contains(p.External, plugin)
}

// prefixes returns the addresses of a result, unmapped.
func prefixes(ips []*current.IPConfig) ([]netip.Prefix, error) {
	var ps []netip.Prefix
	for _, ip := range ips {
		a, ok := netip.AddrFromSlice(ip.Address.IP)
		bits, size := ip.Address.Mask.Size()
		if !ok || size == 0 || a.Unmap().BitLen() != size {
			return nil, fmt.Errorf("address %s: %w", ip.Address.String(), errdefs.ErrInvalidArgument)
		}
		ps = append(ps, netip.PrefixFrom(a.Unmap(), bits))
	}
	return ps, nil
}
