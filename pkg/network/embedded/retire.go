package embedded

import (
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/network/netns"
)

// retire makes a pod's veth useless at once and has it deleted later. prev is the result of ADD, nil if it is lost.
// Idempotent; the namespace may be gone.
func (p *Plugins) retire(c Call, prev *current.Result) error {
	if host := hostEnd(prev, c.IfName); host != nil {
		if found, err := p.retireHost(host); found || err != nil {
			return err
		}
	}
	if c.NetNS == "" { // the link went with it
		return nil
	}
	return p.retirePod(c.NetNS, c.IfName)
}

// hostEnd is the host's end of the pod's veth, as ADD told it; nil if it did not.
func hostEnd(r *current.Result, ifname string) (host *current.Interface) {
	if r == nil {
		return nil
	}
	pod := false
	for _, f := range r.Interfaces {
		switch {
		case f == nil:
		case f.Sandbox != "":
			pod = pod || f.Name == ifname
		case HostName(f.Name) && f.Mac != "":
			if host != nil {
				return nil // which?
			}
			host = f
		}
	}
	if !pod {
		return nil
	}
	return host
}

// retireHost works on the host's end alone: nobody enters the namespace. The port is disabled, which takes the kernel
// none of the grace periods that setting it down or taking it out of the bridge does. Not found: there is no such link.
func (p *Plugins) retireHost(host *current.Interface) (found bool, err error) {
	d, err := p.dialogs.get()
	if err != nil {
		return false, err
	}
	defer func() {
		if err != nil { // perhaps of the exchange
			d.close()
			return
		}
		p.dialogs.put(d)
	}()
	index := p.shared.port(host.Name) // of no other link as long as the node runs: the kernel counts up
	if index == 0 {
		answers, err := d.do(linkRequest(host.Name, 0))
		if err != nil {
			return false, err
		}
		l, err := answers[0].device()
		if notFound(err) || err == nil && (l.kind != "veth" || l.mac.String() != host.Mac) {
			return false, nil
		}
		if err != nil {
			return false, fmt.Errorf("%s: %w", host.Name, err)
		}
		index = l.index
	}
	// In this order: a bridge enables a port anew when something about its link changes.
	answers, err := d.do(groupRequest(index, deadGroup), disableRequest(index))
	if err != nil {
		return false, err
	}
	if err := answers[0].err; notFound(err) {
		p.shared.retired(host.Name)
		return true, nil // it went with the pod's end
	} else if err != nil {
		return false, fmt.Errorf("%s: %w", host.Name, err)
	}
	if answers[1].err != nil { // its bridge has STP, or is none of the kernel's
		down := changeRequest(index, 0, unix.IFF_UP)
		down.Flags |= unix.NLM_F_ACK
		if answers, err = d.do(down); err != nil {
			return false, err
		}
		if err := answers[0].err; err != nil && !notFound(err) {
			return false, fmt.Errorf("%s down: %w", host.Name, err)
		}
	}
	p.shared.retired(host.Name)
	p.reaper.later()
	return true, nil
}

// changeRequest sets a link's flags as far as change says.
func changeRequest(index int, flags, change uint32) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, 0)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index, msg.Flags, msg.Change = int32(index), flags, change
	req.AddData(msg)
	return req
}

// groupRequest puts a link into a group.
func groupRequest(index int, group uint32) *nl.NetlinkRequest {
	req := changeRequest(index, 0, 0)
	req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(group)))
	return req
}

// disableRequest makes a bridge port drop all frames, and is answered: BR_STATE_DISABLED of IFLA_BRPORT_STATE, Linux 3.4.
func disableRequest(index int) *nl.NetlinkRequest {
	const portState, disabled = 1, 0
	req := nl.NewNetlinkRequest(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_BRIDGE)
	msg.Index = int32(index)
	req.AddData(msg)
	info := nl.NewRtAttr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
	info.AddRtAttr(portState, []byte{disabled})
	req.AddData(info)
	return req
}

// retirePod is for a link whose host end is not known: it is found from inside.
func (p *Plugins) retirePod(path, ifname string) error {
	var pod *netlink.LinkAttrs
	err := inside(path, func(h *netlink.Handle) error {
		l, err := h.LinkByName(ifname)
		if notFound(err) || err == nil && l.Type() != "veth" {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", ifname, err)
		}
		addrs, err := addresses(h, l, netlink.FAMILY_ALL)
		if err != nil {
			return fmt.Errorf("addresses of %s: %w", ifname, err)
		}
		for _, a := range addrs {
			if err := h.AddrDel(l, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
				return fmt.Errorf("remove address %s: %w", a.IP, err)
			}
		}
		pod = l.Attrs()
		return wrap(ifname, h.LinkSetGroup(l, deadGroup))
	})
	if gone(path, err) {
		return nil
	}
	if err != nil || pod == nil {
		return err
	}
	h, err := handle()
	if err != nil {
		return err
	}
	defer h.Close()
	host, err := h.LinkByIndex(pod.ParentIndex) // IFLA_LINK of a veth is its peer
	if notFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("host end of %s: %w", ifname, err)
	}
	if host.Type() != "veth" || host.Attrs().ParentIndex != pod.Index {
		return nil
	}
	if err := h.LinkSetGroup(host, deadGroup); err != nil && !notFound(err) {
		return fmt.Errorf("%s: %w", host.Attrs().Name, err)
	}
	p.shared.retired(host.Attrs().Name)
	p.reaper.later()
	return nil
}

// gone tells whether an error of inside is that there is no namespace, but perhaps the empty file of one that was cut short.
func gone(path string, err error) bool {
	return errdefs.IsNotFound(err) || errdefs.IsFailedPrecondition(err) && errdefs.IsNotFound(netns.Check(path))
}

// removeDead deletes a retired link of that name in the namespace ns; errdefs.ErrAlreadyExists for a link that is in use.
func removeDead(d *dialog, ns int, ifname string) error {
	var pod *netlink.LinkAttrs // retired by its host end, if at all
	err := netns.DoFD(ns, func() error {
		h, err := handle()
		if err != nil {
			return err
		}
		defer h.Close()
		l, err := h.LinkByName(ifname)
		if notFound(err) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%s: %w", ifname, err)
		}
		if l.Attrs().Group != deadGroup {
			pod = l.Attrs()
			return nil
		}
		if err := h.LinkDel(l); err != nil && !notFound(err) {
			return fmt.Errorf("delete %s: %w", ifname, err)
		}
		return nil
	})
	if err != nil || pod == nil {
		return err
	}
	inUse := fmt.Errorf("the pod has an interface %s already: %w", ifname, errdefs.ErrAlreadyExists)
	if pod.ParentIndex == 0 {
		return inUse
	}
	answers, err := d.do(linkRequest("", pod.ParentIndex))
	if err != nil {
		return err
	}
	host, err := answers[0].device()
	if err != nil || host.kind != "veth" || host.parent != pod.Index || host.group != deadGroup {
		return inUse
	}
	req := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(host.index)
	req.AddData(msg)
	if answers, err = d.do(req); err != nil {
		return err
	}
	if err := answers[0].err; err != nil && !notFound(err) {
		return fmt.Errorf("delete %s: %w", host.name, err)
	}
	return nil
}
