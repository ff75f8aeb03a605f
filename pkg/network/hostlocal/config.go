package hostlocal

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/utils"
)

// DefaultDataDir is where the reference plugin keeps its stores.
const DefaultDataDir = "/var/lib/cni/networks"

// Config is what an attachment is given addresses by.
type Config struct {
	Network    string
	Dir        string // the network's store
	Ranges     []RangeSet
	Routes     []*types.Route
	ResolvConf string // read for the result's DNS part
	Requested  []netip.Addr
}

type netJSON struct {
	Name string `json:"name"`
	IPAM *struct {
		rangeJSON
		Routes     []*types.Route `json:"routes"`
		DataDir    string         `json:"dataDir"`
		ResolvConf string         `json:"resolvConf"`
		Ranges     []RangeSet     `json:"ranges"`
	} `json:"ipam"`
	RuntimeConfig struct {
		IPRanges []RangeSet `json:"ipRanges"`
		IPs      []string   `json:"ips"`
	} `json:"runtimeConfig"`
	Args struct {
		CNI struct {
			IPs []string `json:"ips"`
		} `json:"cni"`
	} `json:"args"`
}

// Parse reads a plugin's configuration as CNI hands it over; args is CNI_ARGS, of which IP counts. dataDir is used
// where the configuration has none.
func Parse(stdin []byte, args, dataDir string) (*Config, error) {
	var n netJSON
	if err := json.Unmarshal(stdin, &n); err != nil {
		return nil, fmt.Errorf("host-local: configuration: %w", err)
	}
	if n.IPAM == nil {
		return nil, fmt.Errorf("host-local: no ipam section: %w", errdefs.ErrInvalidArgument)
	}
	// The name becomes a directory's.
	if err := utils.ValidateNetworkName(n.Name); err != nil {
		return nil, fmt.Errorf("host-local: network name %q: %w", n.Name, errdefs.ErrInvalidArgument)
	}
	if n.IPAM.DataDir != "" {
		dataDir = n.IPAM.DataDir
	}
	c := &Config{Network: n.Name, Dir: filepath.Join(dataDir, n.Name), Routes: n.IPAM.Routes, ResolvConf: n.IPAM.ResolvConf}
	c.Ranges = append(c.Ranges, n.RuntimeConfig.IPRanges...)
	if n.IPAM.Subnet != "" { // the old form: one range in the section itself
		r, err := n.IPAM.parse()
		if err != nil {
			return nil, fmt.Errorf("host-local: %w", err)
		}
		c.Ranges = append(c.Ranges, RangeSet{r})
	}
	c.Ranges = append(c.Ranges, n.IPAM.Ranges...)
	if len(c.Ranges) == 0 {
		return nil, fmt.Errorf("host-local: no ranges to give addresses from: %w", errdefs.ErrInvalidArgument)
	}
	for i, s := range c.Ranges {
		if err := s.check(); err != nil {
			return nil, fmt.Errorf("host-local: range set %d: %w", i, err)
		}
		for j, o := range c.Ranges[:i] {
			for _, r := range s {
				for _, or := range o {
					if r.overlaps(or) {
						return nil, fmt.Errorf("host-local: range sets %d and %d overlap: %w", j, i, errdefs.ErrInvalidArgument)
					}
				}
			}
		}
	}
	wanted := append(argument(args, "IP"), n.Args.CNI.IPs...)
	for _, s := range append(wanted, n.RuntimeConfig.IPs...) {
		a, err := parseAddr(s)
		if err != nil {
			return nil, fmt.Errorf("host-local: requested address %q: %w", s, errdefs.ErrInvalidArgument)
		}
		c.Requested = append(c.Requested, a)
	}
	return c, nil
}

// parseAddr takes an address with or without a prefix length.
func parseAddr(s string) (netip.Addr, error) {
	if p, err := netip.ParsePrefix(s); err == nil {
		return p.Addr().Unmap(), nil
	}
	a, err := netip.ParseAddr(s)
	return a.Unmap(), err
}

// argument returns the value of one key of CNI_ARGS ("K=V;K=V").
func argument(args, key string) []string {
	for _, kv := range strings.Split(args, ";") {
		if k, v, ok := strings.Cut(kv, "="); ok && k == key && v != "" {
			return []string{v}
		}
	}
	return nil
}
