package embedded

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/seed-9a14075a/cri-server/pkg/network/hostlocal"
	"github.com/seed-9a14075a/cri-server/pkg/network/nat"
)

// Types are the plugins' names.
var Types = []string{"bridge", "host-local", "loopback", "portmap"}

// Call is one call of a plugin: the CNI_* variables.
type Call struct {
	Command, ContainerID, NetNS, IfName, Args, Path string
}

// Plugins runs the plugins in the network namespace of its callers. Safe for concurrent use.
type Plugins struct {
	// Delegate runs an IPAM plugin that is not one of these.
	Delegate func(ctx context.Context, plugin string, c Call, stdin []byte) ([]byte, error)
	// External are plugins of ours that Delegate runs all the same.
	External []string
	// DataDir is host-local's where the configuration names none.
	DataDir string
	Log     *slog.Logger

	nat    *nat.Table
	reaper *reaper
	shared shared
	flows  flows

	dialogs dialogs
}

// New returns the plugins. The caller closes them.
func New(dataDir string, log *slog.Logger) *Plugins {
	if dataDir == "" {
		dataDir = hostlocal.DefaultDataDir
	}
	return &Plugins{DataDir: dataDir, Log: log, nat: nat.New(), reaper: newReaper(log)}
}

// Close ends what runs in the background. Links that wait for their deletion are deleted.
func (p *Plugins) Close() error {
	p.reaper.close()
	p.flows.close()
	p.dialogs.close()
	return p.nat.Close()
}

// conf is what every plugin reads.
type conf struct {
	types.PluginConf
	prev *current.Result
}

// Run runs a plugin and returns its output, a result in the configuration's version.
func (p *Plugins) Run(ctx context.Context, plugin string, c Call, stdin []byte) ([]byte, error) {
	if c.Command == "VERSION" {
		var out bytes.Buffer
		err := version.All.Encode(&out)
		return out.Bytes(), err
	}
	if err := validate(plugin, c); err != nil {
		return nil, err
	}
	base, err := parseConf(plugin, stdin)
	if err != nil {
		return nil, err
	}
	if err := Unsupported(plugin, stdin); err != nil && c.Command != "DEL" && c.Command != "GC" {
		return nil, err
	}
	var r *current.Result
	switch plugin {
	case "bridge":
		r, err = p.bridge(ctx, c, base, stdin)
	case "host-local":
		r, err = p.hostLocal(ctx, c, stdin)
	case "loopback":
		r, err = loopback(c, base)
	case "portmap":
		r, err = p.portmap(c, base, stdin)
	default:
		return nil, fmt.Errorf("no embedded plugin %q: %w", plugin, errdefs.ErrNotFound)
	}
	if err != nil || c.Command != "ADD" {
		return nil, err
	}
	v, err := r.GetAsVersion(base.CNIVersion)
	if err != nil {
		return nil, fmt.Errorf("%s: result: %w", plugin, err)
	}
	return json.Marshal(v)
}

func validate(plugin string, c Call) error {
	switch c.Command {
	case "STATUS", "GC":
		return nil
	case "ADD", "CHECK", "DEL":
	default:
		return fmt.Errorf("%s: CNI command %q: %w", plugin, c.Command, errdefs.ErrNotImplemented)
	}
	if err := ValidateContainerID(c.ContainerID); err != nil {
		return fmt.Errorf("%s: container id %q: %w", plugin, c.ContainerID, errdefs.ErrInvalidArgument)
	}
	if err := utils.ValidateInterfaceName(c.IfName); err != nil {
		return fmt.Errorf("%s: interface name %q: %w", plugin, c.IfName, errdefs.ErrInvalidArgument)
	}
	return nil
}

// ValidateContainerID is utils.ValidateContainerID, which takes several µs for an id of 64 digits.
func ValidateContainerID(id string) error {
	other := func(r rune) bool { return (r < '0' || r > '9') && (r < 'a' || r > 'z') }
	if id != "" && strings.IndexFunc(id, other) < 0 {
		return nil
	}
	if err := utils.ValidateContainerID(id); err != nil { // of a type of its own: its nil is no nil error
		return err
	}
	return nil
}

func parseConf(plugin string, stdin []byte) (*conf, error) {
	var c conf
	if err := json.Unmarshal(stdin, &c.PluginConf); err != nil {
		return nil, fmt.Errorf("%s: configuration: %w: %w", plugin, err, errdefs.ErrInvalidArgument)
	}
	if c.CNIVersion == "" {
		c.CNIVersion = "0.1.0"
	}
	if !slices.Contains(version.All.SupportedVersions(), c.CNIVersion) {
		return nil, fmt.Errorf("%s: cniVersion %s is not one of %v: %w", plugin, c.CNIVersion, version.All.SupportedVersions(), errdefs.ErrInvalidArgument)
	}
	if err := utils.ValidateNetworkName(c.Name); err != nil {
		return nil, fmt.Errorf("%s: network name %q: %w", plugin, c.Name, errdefs.ErrInvalidArgument)
	}
	if c.RawPrevResult != nil {
		if err := version.ParsePrevResult(&c.PluginConf); err != nil {
			return nil, fmt.Errorf("%s: prevResult: %w", plugin, err)
		}
		r, err := current.NewResultFromResult(c.PrevResult)
		if err != nil {
			return nil, fmt.Errorf("%s: prevResult: %w", plugin, err)
		}
		c.prev = r
	}
	return &c, nil
}

// owner is who the pod's nftables elements belong to.
func owner(c Call, network string) nat.Owner {
	o := nat.Owner{ContainerID: c.ContainerID, IfName: c.IfName, Network: network}
	if name := argument(c.Args, "K8S_POD_NAME"); name != "" {
		o.Pod = argument(c.Args, "K8S_POD_NAMESPACE") + "/" + name
	}
	return o
}

// argument returns the value of a key in CNI_ARGS ("K=V;K=V").
func argument(args, key string) string {
	for _, kv := range strings.Split(args, ";") {
		if k, v, _ := strings.Cut(kv, "="); k == key {
			return v
		}
	}
	return ""
}

// collect removes the nftables elements of a network's attachments that are not valid any more.
func (p *Plugins) collect(base *conf) error {
	valid := validAttachments(base)
	return p.nat.GC(func(o nat.Owner) bool {
		return o.Network != base.Name || valid[types.GCAttachment{ContainerID: o.ContainerID, IfName: o.IfName}]
	})
}

func validAttachments(base *conf) map[types.GCAttachment]bool {
	valid := map[types.GCAttachment]bool{}
	for _, a := range base.ValidAttachments {
		valid[a] = true
	}
	return valid
}

// NATOwners lists the attachments that have nftables elements.
func (p *Plugins) NATOwners() ([]nat.Owner, error) { return p.nat.Owners() }

// GCNAT removes the nftables elements of containers that keep refuses, of every network.
func (p *Plugins) GCNAT(keep func(containerID string) bool) error {
	return p.nat.GC(func(o nat.Owner) bool { return keep(o.ContainerID) })
}
