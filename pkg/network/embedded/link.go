package embedded

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// netlinkTimeout bounds one exchange with the kernel.
const netlinkTimeout = 10 * time.Second

// handle opens a route netlink socket in the namespace of the calling thread.
func handle() (*netlink.Handle, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	if err := h.SetSocketTimeout(netlinkTimeout); err != nil {
		h.Close()
		return nil, fmt.Errorf("netlink: %w", err)
	}
	return h, nil
}

// addresses lists a link's addresses. The kernel walks all links for that, and says so when one came or went meanwhile;
// then it is asked again.
func addresses(h *netlink.Handle, l netlink.Link, family int) (list []netlink.Addr, err error) {
	for range 100 {
		if list, err = h.AddrList(l, family); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return list, err
}

// veth is a pair of links to make.
type veth struct {
	host, pod       string // names
	hostMAC, podMAC net.HardwareAddr
	mtu             int  // 0: the kernel's default
	master          int  // the host end's bridge
	hairpin, alone  bool // the port's flags: frames may leave by it again; it is isolated from others that are
	netns           int  // fd of the pod end's namespace
}

// create makes the pair, and returns the host end's index and its peer's: up and in its bridge, the pod end in its namespace and down. Hardware
// addresses are given, so that nobody (udev) changes them later.
//
// A port needs no IPv6 of its own: frames are the bridge's before they could be the port's. With it each port would have an
// address and four routes on the host, and each time that a port comes or goes the kernel walks all of them, with the lock of
// all network changes held. So before it is up it is told to make itself no address, and portRouteRequest takes the one
// route that it still gets. (The sysctl disable_ipv6 does both, but who writes it spins until that lock is free.)
//
// The pair is made by a request of its own: those after it find the host end by its index, or before Linux 6.2 by its name, and with
// that taken they would change somebody else's link.
func (v veth) create(d *dialog) (host device, _ error) {
	answers, err := d.do(v.request())
	if err == nil {
		err = answers[0].err
	}
	if err == nil {
		host, err = v.start(d, answers[0])
	}
	if err != nil {
		return host, fmt.Errorf("veth pair %s, %s: %w", v.host, v.pod, err)
	}
	return host, nil
}

// start brings the host end up. made is the answer to request, which before Linux 6.2 does not tell what was made.
func (v veth) start(d *dialog, made answer) (host device, err error) {
	if made.data != nil {
		if host, err = made.device(); err != nil {
			return host, err
		}
	}
	reqs := []*nl.NetlinkRequest{v.addressless(host.index), v.up(host.index)}
	if host.index == 0 {
		reqs = append(reqs, linkRequest(v.host, 0))
	}
	reqs[len(reqs)-1].Flags |= unix.NLM_F_ACK
	answers, err := d.do(reqs...)
	if err == nil {
		err = answers[1].err // of the one before nothing depends: without IPv6 it is refused
	}
	if err == nil && host.index == 0 {
		host, err = answers[2].device()
	}
	return host, err
}

// set changes the host end by its index, by its name if that is 0: RTM_NEWLINK, which may tell its flags as a port too, and makes
// nothing without NLM_F_CREATE.
func (v veth) set(index int, flags uint32) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, 0)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index, msg.Flags, msg.Change = int32(index), flags, flags
	req.AddData(msg)
	if index == 0 {
		req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(v.host)))
	}
	return req
}

// up also sets the port's flags: IFLA_INFO_SLAVE_DATA, Linux 3.14; isolated, Linux 4.18.
func (v veth) up(index int) *nl.NetlinkRequest {
	req := v.set(index, unix.IFF_UP)
	if v.hairpin || v.alone {
		const hairpin, isolated = 4, 33 // IFLA_BRPORT_MODE, IFLA_BRPORT_ISOLATED
		info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
		info.AddRtAttr(nl.IFLA_INFO_SLAVE_KIND, nl.NonZeroTerminated("bridge"))
		port := info.AddRtAttr(nl.IFLA_INFO_SLAVE_DATA, nil)
		for _, flag := range []struct {
			attr int
			set  bool
		}{{hairpin, v.hairpin}, {isolated, v.alone}} {
			if flag.set {
				port.AddRtAttr(flag.attr, []byte{1})
			}
		}
		req.AddData(info)
	}
	return req
}

func (v veth) addressless(index int) *nl.NetlinkRequest { return addressless(v.set(index, 0)) }

// addressless adds to a change of a link that addr_gen_mode is none: IFLA_INET6_ADDR_GEN_MODE, Linux 3.17. Without IPv6 it is refused.
func addressless(req *nl.NetlinkRequest) *nl.NetlinkRequest {
	const addrGenMode, none = 8, 1 // IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	spec.AddRtAttr(unix.AF_INET6, nil).AddRtAttr(addrGenMode, []byte{none})
	req.AddData(spec)
	return req
}

// portRouteRequest removes the multicast route that every link which is up gets.
func portRouteRequest(index int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.RTM_DELROUTE, unix.NLM_F_ACK)
	msg := nl.NewRtDelMsg()
	msg.Family, msg.Dst_len, msg.Table, msg.Type = unix.AF_INET6, 8, unix.RT_TABLE_LOCAL, unix.RTN_MULTICAST
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.RTA_DST, net.ParseIP("ff00::")))
	req.AddData(nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(index))))
	return req
}

func (v veth) request() *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK|unix.NLM_F_ECHO)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(v.host)))
	req.AddData(nl.NewRtAttr(unix.IFLA_ADDRESS, v.hostMAC))
	req.AddData(nl.NewRtAttr(unix.IFLA_MASTER, nl.Uint32Attr(uint32(v.master))))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	peer := info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.VETH_INFO_PEER, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC)
	peer.AddRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(v.pod))
	peer.AddRtAttr(unix.IFLA_ADDRESS, v.podMAC)
	peer.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(v.netns)))
	if v.mtu > 0 {
		req.AddData(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(v.mtu))))
		peer.AddRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(v.mtu)))
	}
	// Else each end is registered with a queue for each of the node's CPUs, in sysfs and with an event for udev each, and all but
	// the first are taken back at once (Linux 5.13).
	for _, queues := range []uint16{unix.IFLA_NUM_TX_QUEUES, unix.IFLA_NUM_RX_QUEUES} {
		req.AddData(nl.NewRtAttr(int(queues), nl.Uint32Attr(1)))
		peer.AddRtAttr(int(queues), nl.Uint32Attr(1))
	}
	req.AddData(info)
	return req
}

// hardwareAddr returns a random locally administered unicast address.
func hardwareAddr() net.HardwareAddr {
	b := make(net.HardwareAddr, 6)
	_, _ = rand.Read(b) // never fails: crypto/rand
	b[0] = b[0]&^1 | 2
	return b
}

// hostName returns a name for a host end. It starts with veth, which NetworkManager leaves alone.
func hostName() string {
	b := make([]byte, 4)
	_, _ = rand.Read(b)
	return fmt.Sprintf("veth%x", b)
}

// HostName tells whether a name is one that this plugin, or the reference, gives to a host end: veth and eight hex digits.
func HostName(name string) bool {
	digits, ok := strings.CutPrefix(name, "veth")
	return ok && len(digits) == 8 && strings.Trim(digits, "0123456789abcdef") == ""
}

func notFound(err error) bool {
	var lnf netlink.LinkNotFoundError
	return errors.As(err, &lnf) || errors.Is(err, unix.ENODEV)
}

// waitUp waits until a bridge port forwards: the kernel's link watch does that in the background. host is what the port was
// like last.
func waitUp(d *dialog, host device) error {
	deadline := time.Now().Add(3 * time.Second)
	for wait := 50 * time.Microsecond; host.oper != uint8(netlink.OperUp); wait = min(2*wait, 20*time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("bridge port %s is %s: %w", host.name, netlink.LinkOperState(host.oper), errdefs.ErrUnavailable)
		}
		time.Sleep(wait)
		answers, err := d.do(linkRequest("", host.index), portRouteRequest(host.index))
		if err == nil {
			host, err = answers[0].device()
		}
		if err != nil {
			return fmt.Errorf("bridge port: %w", err)
		}
	}
	return nil
}
