package network

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/vishvananda/netlink"

	"github.com/seed-9a14075a/cri-server/pkg/faultpoint"
	"github.com/seed-9a14075a/cri-server/pkg/network/embedded"
	"github.com/seed-9a14075a/cri-server/pkg/network/netns"
)

// undoTimeout bounds taking down what a failed Attach made, on top of the caller's own deadline.
const undoTimeout = time.Minute

// Limits on a result.
const (
	maxIPs    = 64
	maxResult = 256 << 10 // bytes
)

// Attach implements Network. lo is brought up here, whatever the configuration says.
func (n *CNI) Attach(ctx context.Context, p Pod) (*Result, error) {
	if err := embedded.ValidateContainerID(p.ID); err != nil {
		return nil, fmt.Errorf("attach: pod id %q: %w", p.ID, errdefs.ErrInvalidArgument)
	}
	list, err := n.list()
	if err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	rt, err := n.runtimeConf(p)
	if err != nil {
		return nil, fmt.Errorf("attach: %w", err)
	}
	if !netns.Prepared(p.NetNS) {
		if err := netns.Do(p.NetNS, netns.Prepare); err != nil {
			return nil, fmt.Errorf("attach: %w", err)
		}
	}
	n.mu.Lock()
	n.active[p.ID] = nil
	n.mu.Unlock()
	n.verbs.RLock()
	defer n.verbs.RUnlock()
	r, err := n.add(ctx, list, rt)
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
		defer cancel()
		err = fmt.Errorf("attach to network %s: %w", list.Name, err)
		if uerr := n.rollback(undo, list, rt); uerr != nil {
			return nil, errors.Join(err, fmt.Errorf("and taking it down again: %w", uerr))
		}
		n.forget(p.ID)
		return nil, err
	}
	return r, nil
}

func (n *CNI) forget(id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.active, id)
}

func (n *CNI) add(ctx context.Context, list *confList, rt *libcni.RuntimeConf) (*Result, error) {
	if err := faultpoint.Hit("network.attach.add"); err != nil {
		return nil, err
	}
	var r *current.Result
	var raw []byte
	var err error
	args := argsText(rt.Args)
	if list.chain(n.exec).Fits(args) {
		r, raw, err = n.addInProcess(ctx, list, rt, args)
	} else {
		var of types.Result
		if of, err = n.lib.AddNetworkList(ctx, list.NetworkConfigList, rt); err == nil {
			r, raw, err = latest(of)
		}
	}
	if err == nil {
		err = faultpoint.Hit("network.attach.added")
	}
	if err != nil {
		return nil, err
	}
	return result(r, raw, list.Name, rt)
}

// rollback runs DEL of each plugin, last first, whether those before it fail or not. (libcni stops at the first error,
// and for a pod without a result there may be no retry.)
func (n *CNI) rollback(ctx context.Context, list *confList, rt *libcni.RuntimeConf) error {
	var errs []error
	for i := len(list.Plugins) - 1; i >= 0; i-- {
		if _, err := n.exec.FindInPath(list.Plugins[i].Network.Type, n.cfg.BinDirs); err != nil {
			continue // it was not run either
		}
		one := *list.NetworkConfigList
		one.Plugins = one.Plugins[i : i+1]
		errs = append(errs, faultpoint.Hit("network.rollback"), n.lib.DelNetworkList(ctx, &one, rt))
	}
	return errors.Join(errs...)
}

// latest is a result of any version in the latest, as such and as text.
func latest(of types.Result) (*current.Result, []byte, error) {
	r, err := current.GetResult(of)
	if err != nil {
		if r, err = current.NewResultFromResult(of); err != nil {
			return nil, nil, fmt.Errorf("result: %w", err)
		}
	}
	b, err := encode(r)
	if err != nil {
		return nil, nil, fmt.Errorf("result: %w", err)
	}
	return r, b, nil
}

// result checks what the plugins returned, which is not to be trusted, and picks out what kubelet needs. b is r as text.
func result(r *current.Result, b []byte, network string, rt *libcni.RuntimeConf) (*Result, error) {
	if len(b) > maxResult || len(r.IPs) > maxIPs {
		return nil, fmt.Errorf("result: %d bytes with %d addresses are too many: %w", len(b), len(r.IPs), errdefs.ErrFailedPrecondition)
	}
	out := &Result{Interface: rt.IfName, Network: network, Raw: b}
	for _, ip := range r.IPs {
		if ip == nil {
			return nil, fmt.Errorf("result: an address is null: %w", errdefs.ErrFailedPrecondition)
		}
		if i := ip.Interface; i != nil {
			if *i < 0 || *i >= len(r.Interfaces) || r.Interfaces[*i] == nil {
				return nil, fmt.Errorf("result: address %s is of interface %d, and there are %d: %w", ip.Address.String(), *i, len(r.Interfaces), errdefs.ErrFailedPrecondition)
			}
			if f := r.Interfaces[*i]; f.Name != rt.IfName || f.Sandbox == "" {
				continue
			}
		}
		a, ok := netip.AddrFromSlice(ip.Address.IP)
		a = a.Unmap()
		if !ok || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
			return nil, fmt.Errorf("result: %q is no address for a pod: %w", ip.Address.IP.String(), errdefs.ErrFailedPrecondition)
		}
		out.IPs = append(out.IPs, a)
	}
	if len(out.IPs) == 0 {
		return nil, fmt.Errorf("result: the plugins gave %s no address: %w", rt.IfName, errdefs.ErrFailedPrecondition)
	}
	out.HostInterface = hostInterface(r)
	return out, nil
}

// hostInterface is the link on the host that leads to the pod: the only one there, or the veth among several.
func hostInterface(r *current.Result) string {
	var host []string
	for _, f := range r.Interfaces {
		if f != nil && f.Sandbox == "" && utils.ValidateInterfaceName(f.Name) == nil {
			host = append(host, f.Name)
		}
	}
	if len(host) == 1 {
		return host[0]
	}
	if len(host) == 2 && r.Interfaces[0] != nil && host[0] == r.Interfaces[0].Name && embedded.HostName(host[1]) {
		return host[1] // bridge and port, as the reference plugin orders them and names the port
	}
	for _, name := range host {
		if l, err := netlink.LinkByName(name); err == nil && l.Type() == "veth" {
			return name
		}
	}
	return ""
}

// Detach implements Network. It uses the configuration and the arguments of the time of Attach, as cached, for every
// network the pod was attached to; without a cache, those of today.
func (n *CNI) Detach(ctx context.Context, p Pod) error {
	if err := embedded.ValidateContainerID(p.ID); err != nil {
		return fmt.Errorf("detach: pod id %q: %w", p.ID, errdefs.ErrInvalidArgument)
	}
	if done, err := n.detachInProcess(ctx, p); err != nil {
		return fmt.Errorf("detach: %w", err)
	} else if done {
		return n.detached(p)
	}
	if p.NetNS != "" && errdefs.IsNotFound(netns.Check(p.NetNS)) {
		p.NetNS = "" // CNI: the namespace is gone. The plugins in process see it themselves, if they need it at all.
	}
	cached, err := n.lib.GetCachedAttachments(p.ID)
	if err != nil {
		return fmt.Errorf("detach: cached results: %w", err)
	}
	for _, a := range cached {
		if err := n.detachCached(ctx, a, p.NetNS); err != nil {
			return fmt.Errorf("detach from network %s: %w", a.Network, err)
		}
	}
	if len(cached) == 0 {
		if err := n.detachUncached(ctx, p); err != nil {
			return fmt.Errorf("detach: %w", err)
		}
	}
	return n.detached(p)
}

func (n *CNI) detached(p Pod) error {
	n.forget(p.ID)
	return faultpoint.Hit("network.detach.deleted")
}

// deleting is passed by each DEL, in process or not.
func deleting() error { return faultpoint.Hit("network.detach.del") }

func (n *CNI) detachCached(ctx context.Context, a *libcni.NetworkAttachment, ns string) error {
	if ns == "" && netns.Check(a.NetNS) == nil {
		ns = a.NetNS
	}
	n.verbs.RLock()
	defer n.verbs.RUnlock()
	list, err := libcni.NetworkConfFromBytes(a.Config)
	if err != nil {
		return fmt.Errorf("cached configuration: %w", err)
	}
	rt := &libcni.RuntimeConf{ContainerID: a.ContainerID, NetNS: ns, IfName: a.IfName, Args: a.CniArgs, CapabilityArgs: a.CapabilityArgs}
	if err := deleting(); err != nil {
		return err
	}
	if err := n.lib.DelNetworkList(ctx, list, rt); err != nil {
		return err
	}
	// libcni has removed it, or keeps to itself that it couldn't.
	err = os.Remove(n.resultFile(a.Network, a.ContainerID, a.IfName))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cached result: %w", err)
	}
	return nil
}

// detachUncached covers a crash between ADD and the writing of its result. A plugin that is not there has not attached
// anything.
func (n *CNI) detachUncached(ctx context.Context, p Pod) error {
	list, err := n.list()
	if err != nil {
		return nil // no configuration: nothing can have been attached by it
	}
	rt, err := n.runtimeConf(p)
	if err != nil {
		return nil // Attach refused it too
	}
	n.verbs.RLock()
	defer n.verbs.RUnlock()
	return n.rollback(ctx, list, rt)
}
