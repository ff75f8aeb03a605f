package network

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/seed-9a14075a/cri-server/pkg/network/embedded"
	"github.com/seed-9a14075a/cri-server/pkg/network/hostlocal"
	"github.com/seed-9a14075a/cri-server/pkg/network/netns"
)

// Prefix is how the names of pinned namespaces start; the sandbox id follows.
const Prefix = "cri-"

// GC implements Network. Pods that this process attached and has not detached count as live, and so do namespaces that
// it pinned: a pod may be made while the caller's list is already old. It goes on after errors and returns all.
func (n *CNI) GC(ctx context.Context, live map[string]bool) error {
	keep := n.keeps(live)
	var errs []error
	cached, err := n.lib.GetCachedAttachments("")
	if err != nil {
		errs = append(errs, fmt.Errorf("cached results: %w", err))
	}
	mine := n.traces(cached)
	valid := []types.GCAttachment{}
	dirs := map[string]bool{} // host-local's, of the networks that are or were in use
	for _, a := range cached {
		n.leaseDirs(a.Config, dirs)
		if keep(a.ContainerID) {
			valid = append(valid, types.GCAttachment{ContainerID: a.ContainerID, IfName: a.IfName})
			continue
		}
		if err := n.detachCached(ctx, a, ""); err != nil {
			errs = append(errs, fmt.Errorf("detach %s from network %s: %w", a.ContainerID, a.Network, err))
		}
	}
	for id := range live {
		valid = append(valid, types.GCAttachment{ContainerID: id, IfName: ifName})
	}
	if list, err := n.list(); err == nil {
		n.leaseDirs(list.Bytes, dirs)
		errs = append(errs, n.gcVerb(ctx, list, valid))
	}
	if n.plugins != nil {
		for dir := range dirs {
			foreign := n.foreign(dir, mine)
			errs = append(errs, hostlocal.GC(ctx, dir, func(id, _ string) bool { return keep(id) || foreign(id) }))
		}
		errs = append(errs, n.plugins.GCNAT(keep))
	}
	errs = append(errs, n.gcNamespaces(keep))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("network garbage: %w", err)
	}
	return nil
}

func (n *CNI) keeps(live map[string]bool) func(id string) bool {
	return func(id string) bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		_, active := n.active[id]
		return live[id] || active
	}
}

// Garbage implements Network. It changes nothing.
func (n *CNI) Garbage(ctx context.Context, live map[string]bool) (found []Garbage, _ error) {
	keep := n.keeps(live)
	add := func(kind, name, id string) {
		if g := (Garbage{kind, name, id}); !keep(id) && !slices.Contains(found, g) {
			found = append(found, g)
		}
	}
	var errs []error
	cached, err := n.lib.GetCachedAttachments("")
	errs = append(errs, err)
	mine := n.traces(cached)
	dirs := map[string]bool{}
	for _, a := range cached {
		n.leaseDirs(a.Config, dirs)
		add("attachment", a.Network+" "+a.IfName, a.ContainerID)
	}
	if list, err := n.list(); err == nil {
		n.leaseDirs(list.Bytes, dirs)
	}
	if n.plugins != nil {
		for _, dir := range slices.Sorted(maps.Keys(dirs)) {
			leases, err := hostlocal.All(ctx, dir)
			errs = append(errs, err)
			foreign := n.foreign(dir, mine)
			for _, l := range leases {
				if !foreign(l.ID) {
					add("address", l.Address.String(), l.ID)
				}
			}
		}
		owners, err := n.plugins.NATOwners()
		errs = append(errs, err)
		for _, o := range owners {
			add("nftables", o.Network+" "+o.IfName, o.ContainerID)
		}
	}
	names, err := netns.List(n.cfg.NetnsDir, Prefix)
	errs = append(errs, err)
	for _, name := range names {
		if path := filepath.Join(n.cfg.NetnsDir, name); !netns.Pinned(path) {
			add("netns", path, strings.TrimPrefix(name, Prefix))
		}
	}
	return found, errors.Join(errs...)
}

// traces are the sandboxes of which there is more than a lease: an attachment, a namespace, rules of the firewall. All these bear
// this server's mark.
func (n *CNI) traces(cached []*libcni.NetworkAttachment) map[string]bool {
	ids := map[string]bool{}
	for _, a := range cached {
		ids[a.ContainerID] = true
	}
	names, _ := netns.List(n.cfg.NetnsDir, Prefix) // without, fewer are known, and fewer leases released
	for _, name := range names {
		ids[strings.TrimPrefix(name, Prefix)] = true
	}
	if n.plugins != nil {
		owners, _ := n.plugins.NATOwners()
		for _, o := range owners {
			ids[o.ContainerID] = true
		}
	}
	return ids
}

// foreign tells of which sandboxes the leases in a host-local store may be another runtime's: in a store that is not this
// server's alone, all of those that it has no trace of. The reference plugins' own directory is one for all; CNI's GC (SPEC,
// "GC: Clean up any stale resources") takes a network to be one runtime's, and has disableGC for those that are not, which
// nobody sets. What a crash leaves between a lease and its attachment's result is found by the sandbox's record, which
// is there before.
func (n *CNI) foreign(dir string, mine map[string]bool) func(id string) bool {
	alone := n.cfg.StateDir != hostlocal.DefaultDataDir && strings.HasPrefix(dir, filepath.Clean(n.cfg.StateDir)+"/")
	return func(id string) bool { return !alone && !mine[id] }
}

// Bounds on CNI's GC verb: how long it waits for attachments under way, and how long others then wait for it.
const (
	gcQuiet   = 10 * time.Second
	gcTimeout = 30 * time.Second
)

// gcVerb runs CNI's GC (1.1) of the plugins that are programs; ours are done without it. The specification wants
// neither ADD nor DEL beside it. Where there is no quiet moment it is left for the next time.
func (n *CNI) gcVerb(ctx context.Context, list *confList, valid []types.GCAttachment) error {
	if newer, _ := version.GreaterThanOrEqualTo(list.CNIVersion, "1.1.0"); !newer || list.DisableGC {
		return nil
	}
	programs := *list.NetworkConfigList
	programs.Plugins = slices.DeleteFunc(slices.Clone(programs.Plugins), func(p *libcni.PluginConfig) bool {
		path, err := n.exec.FindInPath(p.Network.Type, n.cfg.BinDirs)
		return err == nil && strings.HasPrefix(path, embeddedPath) && embedded.Unsupported(p.Network.Type, p.Bytes) == nil
	})
	if len(programs.Plugins) == 0 {
		return nil
	}
	for end := time.Now().Add(gcQuiet); !n.verbs.TryLock(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) || ctx.Err() != nil {
			n.log.Info("CNI GC is put off: pods are being attached all the time", "network", list.Name)
			return nil
		}
	}
	defer n.verbs.Unlock()
	n.mu.Lock()
	for id := range n.active {
		valid = append(valid, types.GCAttachment{ContainerID: id, IfName: ifName})
	}
	n.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, gcTimeout)
	defer cancel()
	return n.lib.GCNetworkList(ctx, &programs, &libcni.GCArgs{ValidAttachments: valid})
}

// leaseDirs adds the host-local stores of a configuration whose plugins run in process.
func (n *CNI) leaseDirs(config []byte, dirs map[string]bool) {
	if n.plugins == nil {
		return
	}
	list, err := libcni.NetworkConfFromBytes(config)
	if err != nil {
		return
	}
	for _, p := range list.Plugins {
		if p.Network.IPAM.Type != "host-local" {
			continue
		}
		one, err := libcni.InjectConf(p, map[string]any{"name": list.Name})
		if err != nil {
			continue
		}
		if c, err := hostlocal.Parse(one.Bytes, "", n.cfg.StateDir); err == nil {
			dirs[c.Dir] = true
		}
	}
}

func (n *CNI) gcNamespaces(keep func(id string) bool) error {
	names, err := netns.List(n.cfg.NetnsDir, Prefix)
	errs := []error{err}
	for _, name := range names {
		path := filepath.Join(n.cfg.NetnsDir, name)
		if !keep(strings.TrimPrefix(name, Prefix)) && !netns.Pinned(path) {
			errs = append(errs, netns.Remove(path))
		}
	}
	return errors.Join(errs...)
}
