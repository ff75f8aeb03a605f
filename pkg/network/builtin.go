package network

import (
	"encoding/json"
	"fmt"
	"net/netip"

	"github.com/containernetworking/cni/libcni"
)

// builtinName is the name of the network of ModeEmbedded, and so of its directory of leases.
const builtinName = "cri"

type object = map[string]any

// builtin makes the configuration of ModeEmbedded: what a newcomer would write into ConfDir for the plugins we have.
func builtin(cfg Config, cidrs []netip.Prefix) (*confList, error) {
	var ranges [][]object
	var routes []object
	for _, c := range cidrs {
		ranges = append(ranges, []object{{"subnet": c.String()}})
		if c.Addr().Is4() {
			routes = append(routes, object{"dst": "0.0.0.0/0"})
		} else {
			routes = append(routes, object{"dst": "::/0"})
		}
	}
	bridge := object{
		"type": "bridge", "bridge": cfg.Bridge, "isGateway": true, "ipMasq": true, "hairpinMode": true,
		"keepAddresses": true,
		"ipam":          object{"type": "host-local", "dataDir": cfg.StateDir, "ranges": ranges, "routes": routes},
	}
	if cfg.MTU > 0 {
		bridge["mtu"] = cfg.MTU
	}
	b, err := json.Marshal(object{"cniVersion": "1.1.0", "name": builtinName, "loadOnlyInlinedPlugins": true, "plugins": []object{
		bridge, {"type": "portmap", "snat": true, "capabilities": object{"portMappings": true}},
	}})
	if err != nil {
		return nil, fmt.Errorf("built-in network: %w", err)
	}
	l, err := libcni.NetworkConfFromBytes(b)
	if err != nil {
		return nil, fmt.Errorf("built-in network: %w", err)
	}
	return &confList{NetworkConfigList: l}, nil
}
