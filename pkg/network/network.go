// Package network connects pod sandboxes: network namespaces pinned by name, CNI attachments through libcni or the
// embedded plugins, and the removal of what no record stands for.
//
// A namespace is a bind mount of an nsfs file below Config.NetnsDir (/run/netns, so that `ip netns` shows it) with the
// prefix "cri-". The package owns every such mount and every CNI result cached under Config.CacheDir; both survive
// cri-server. CNI plugins named bridge, host-local, portmap and loopback run in process (package embedded) unless
// Config.Mode or Config.External say otherwise, with the same configuration and results as the reference plugins.
//
// libcni runs the plugins through an Exec of ours, and keeps the result, the configuration and the arguments of each ADD,
// which DEL uses even if the configuration changed since. Where all plugins of a list run in process, ADD and DEL go without
// it, and keep the same. Every run of a
// program has a deadline and a bound on its output, and no result is believed unchecked. A failed Attach runs DEL of
// every plugin; what a crash leaves, GC takes away.
package network

import (
	"context"
	"net/netip"
)

// Pod identifies the sandbox to a network.
type Pod struct {
	ID           string // sandbox id, CNI_CONTAINERID
	Namespace    string // Kubernetes namespace, name, uid: K8S_POD_* CNI_ARGS
	Name         string
	UID          string
	NetNS        string // path of the pinned namespace; "" or missing is legal for Detach
	Annotations  map[string]string
	PortMappings []PortMapping
	DNS          DNS
	CgroupParent string
}

// PortMapping is one CRI port mapping; HostPort 0 maps nothing.
type PortMapping struct {
	Protocol                string // tcp, udp, sctp
	ContainerPort, HostPort int32
	HostIP                  string
}

// DNS is handed to plugins with the dns capability.
type DNS struct{ Servers, Searches, Options []string }

// Result is what kubelet learns of an attachment.
type Result struct {
	// IPs are the addresses of the pod's default interface, the primary first.
	IPs []netip.Addr `json:"ips"`
	// Interface is the default interface inside the pod ("eth0"); HostInterface its veth peer, if there is one.
	Interface     string `json:"interface"`
	HostInterface string `json:"host_interface,omitempty"`
	Network       string `json:"network"` // the conflist's name
	// Raw is the whole CNI result, for inspect.
	Raw []byte `json:"raw,omitempty"`
}

// Garbage is something that no pod's record stands for.
type Garbage struct {
	Kind string // attachment, address, nftables, netns
	Name string // of the thing
	ID   string // of the sandbox that it belonged to
}

// Network attaches and detaches pods. Safe for concurrent use.
type Network interface {
	// Attach runs ADD for loopback and every network. On error everything it made is taken down again.
	Attach(ctx context.Context, p Pod) (*Result, error)
	// Detach runs DEL; idempotent; the namespace may be gone.
	Detach(ctx context.Context, p Pod) error
	// Status is nil when pods can be attached; else an error that says what is missing (no config in DIR: ...).
	Status() error
	// SetPodCIDR tells the embedded network the node's pod ranges (UpdateRuntimeConfig); empty is ignored.
	SetPodCIDR(ctx context.Context, cidr string) error
	// GC releases attachments and addresses of pods that are not in live (sandbox ids), and unpins namespaces
	// with our prefix that are not in it. Of addresses in a store that other runtimes may use as well, it releases those
	// of pods that were this server's.
	GC(ctx context.Context, live map[string]bool) error
	// Garbage is what GC would take away, as far as it can be known without asking plugins that are programs.
	Garbage(ctx context.Context, live map[string]bool) ([]Garbage, error)
	// Close stops watching the configuration directory.
	Close() error
}
