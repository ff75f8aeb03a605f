// Package embedded is the CNI plugins bridge, host-local, portmap and loopback in process: the configuration, the results
// and the addresses on disk are those of the reference plugins (github.com/containernetworking/plugins v1.9), the work
// is done over netlink and nftables without starting a program.
//
// What a configuration asks for and these plugins can't do is refused with errdefs.ErrNotImplemented that names the
// key (see Unsupported); keys that no plugin knows are ignored, as there.
//
// Where they differ: masquerading and host ports are always nftables, in the table of package nat; a host port that
// another pod has is refused; a pod that is given IPv4 addresses alone has no link-local IPv6 address, if the bridge is its
// gateway; a veth has one queue (Linux 5.13 and later use one of as many as there are CPUs) and no room for more, which XDP alone
// has a use for; a link is not deleted by DEL at once, which takes the kernel ~20 ms each, but loses its addresses and is deleted
// with others a second later, unless its namespace took it away before that.
package embedded
