package embedded

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/containernetworking/cni/libcni"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/seed-9a14075a/cri-server/pkg/network/hostlocal"
)

// Chain is a list of plugins that all run in process, with its configuration read: an ADD hands the result of one to the next
// as it is, where libcni would write and read it as text, and the configuration with it, some ten times.
type Chain struct {
	name, version string
	links         []link
}

// link is one plugin of a Chain.
type link struct {
	plugin string
	conf   *libcni.PluginConfig // with name and version
	parsed
}

// parsed is a plugin's configuration; which is set depends on the plugin.
type parsed struct {
	base    *conf
	bridge  *bridgeConf
	portmap *portmapConf
}

// Compile reads a list's configuration; nil where something in it is not for the plugins here alone, or is wrong: then libcni's
// way does it, or says so.
func (p *Plugins) Compile(list *libcni.NetworkConfigList) *Chain {
	ch := &Chain{name: list.Name, version: list.CNIVersion}
	for _, c := range list.Plugins {
		plugin := c.Network.Type
		// As libcni does: all plugins are of one name and version.
		c, err := libcni.InjectConf(c, map[string]any{"name": list.Name, "cniVersion": list.CNIVersion})
		if err != nil || Unsupported(plugin, c.Bytes) != nil {
			return nil
		}
		l := link{plugin: plugin, conf: c}
		if l.parsed, err = p.parse(plugin, c.Bytes); err != nil {
			return nil
		}
		ch.links = append(ch.links, l)
	}
	if len(ch.links) == 0 {
		return nil
	}
	return ch
}

// parse reads one plugin's configuration without a result before it.
func (p *Plugins) parse(plugin string, stdin []byte) (c parsed, err error) {
	if c.base, err = parseConf(plugin, stdin); err != nil {
		return c, err
	}
	switch plugin {
	case "bridge":
		if c.bridge, err = parseBridge(c.base, "", stdin); err != nil {
			return c, err
		}
		switch {
		case c.bridge.IPAM.Type == "":
		case p.ownIPAM(c.bridge.IPAM.Type):
			c.bridge.leases, err = hostlocal.Parse(stdin, "", p.DataDir)
		default:
			err = fmt.Errorf("ipam plugin %q is a program", c.bridge.IPAM.Type)
		}
	case "portmap":
		c.portmap = &portmapConf{}
		err = json.Unmarshal(stdin, c.portmap)
	case "loopback":
	default:
		err = fmt.Errorf("%q does not make interfaces", plugin)
	}
	return c, err
}

// Fits tells whether an attachment's CNI_ARGS ask for nothing that a plugin's configuration would have to be read anew for.
func (ch *Chain) Fits(args string) bool {
	return ch != nil && argument(args, "MAC") == "" && argument(args, "IP") == ""
}

// Wanted are those of capabilities that a plugin's configuration asks for; nil if there are none.
func (ch *Chain) Wanted(capabilities map[string]any) (wanted map[string]any) {
	for _, l := range ch.links {
		for name, asks := range l.conf.Network.Capabilities {
			if v, ok := capabilities[name]; ok && asks {
				if wanted == nil {
					wanted = map[string]any{}
				}
				wanted[name] = v
			}
		}
	}
	return wanted
}

// Add runs ADD of all plugins and returns the result of the last. capabilities are what each is told of as far as its
// configuration asks for it. What was made before an error stays, as with libcni.
func (p *Plugins) Add(ctx context.Context, ch *Chain, c Call, capabilities map[string]any) (r *current.Result, err error) {
	c.Command = "ADD"
	for i, l := range ch.links {
		if i == 0 { // for all
			err = validate(l.plugin, c)
		}
		if err == nil {
			r, err = p.add(ctx, l, c, capabilities, r)
		}
		if err != nil {
			return nil, fmt.Errorf("plugin type=%q failed (add): %w", l.plugin, err)
		}
	}
	return r, nil
}

func (p *Plugins) add(ctx context.Context, l link, c Call, capabilities map[string]any, prev *current.Result) (*current.Result, error) {
	l, stdin, err := p.tell(l, capabilities)
	if err != nil {
		return nil, err
	}
	base := *l.base // what is kept is for all pods
	base.prev = prev
	switch l.plugin {
	case "bridge":
		b := *l.bridge
		b.conf = &base
		return p.bridgeAdd(ctx, c, &b, stdin)
	case "portmap":
		return p.forward(c, &base, l.portmap)
	default:
		return loopback(c, &base)
	}
}

// tell returns the plugin with its configuration as it is with the capabilities that it asks for.
func (p *Plugins) tell(l link, capabilities map[string]any) (_ link, stdin []byte, err error) {
	told := map[string]any{}
	for name, wanted := range l.conf.Network.Capabilities {
		if v, ok := capabilities[name]; ok && wanted {
			told[name] = v
		}
	}
	if len(told) == 0 {
		return l, l.conf.Bytes, nil
	}
	conf, err := libcni.InjectConf(l.conf, map[string]any{"runtimeConfig": told})
	if err != nil {
		return l, nil, err
	}
	l.parsed, err = p.parse(l.plugin, conf.Bytes)
	return l, conf.Bytes, err
}

// Del runs DEL of all plugins, the last first, up to an error. prev is the result of Add, nil if it is lost.
func (p *Plugins) Del(ctx context.Context, ch *Chain, c Call, capabilities map[string]any, prev *current.Result) error {
	c.Command = "DEL"
	for i, l := range slices.Backward(ch.links) {
		var err error
		if i == len(ch.links)-1 { // for all
			err = validate(l.plugin, c)
		}
		if err == nil {
			err = p.del(ctx, l, c, capabilities, prev)
		}
		if err != nil {
			return fmt.Errorf("plugin type=%q failed (delete): %w", l.plugin, err)
		}
	}
	return nil
}

func (p *Plugins) del(ctx context.Context, l link, c Call, capabilities map[string]any, prev *current.Result) error {
	l, stdin, err := p.tell(l, capabilities)
	if err != nil {
		return err
	}
	base := *l.base
	base.prev = prev
	switch l.plugin {
	case "bridge":
		b := *l.bridge
		b.conf = &base
		return p.bridgeDel(ctx, c, &b, stdin)
	case "portmap":
		return p.unforward(c, &base, l.portmap)
	default:
		_, err := loopback(c, &base)
		return err
	}
}
