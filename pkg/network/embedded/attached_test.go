package embedded

import (
	"encoding/json"
	"net"
	"reflect"
	"testing"

	current "github.com/containernetworking/cni/pkg/types/100"
)

// TestAttached: what is kept of a result says the same to DEL as all of it.
func TestAttached(t *testing.T) {
	bridge, host := &current.Interface{Name: "cni0", Mac: "00:00:00:00:00:01"}, &current.Interface{Name: hostName(), Mac: "00:00:00:00:00:02"}
	pod, lo := &current.Interface{Name: "eth0", Mac: "00:00:00:00:00:03", Sandbox: "/run/netns/x"}, &current.Interface{Name: "lo", Sandbox: "/run/netns/x"}
	ip := func(i *int, text string) *current.IPConfig {
		a, n, err := net.ParseCIDR(text)
		if err != nil {
			t.Fatal(err)
		}
		return &current.IPConfig{Interface: i, Address: net.IPNet{IP: a, Mask: n.Mask}, Gateway: a}
	}
	all := []*current.Interface{bridge, host, pod}
	for name, tt := range map[string]struct {
		interfaces []*current.Interface
		ips        []*current.IPConfig
		ok         bool
	}{
		"nothing":              {nil, nil, true},
		"an address":           {all, []*current.IPConfig{ip(current.Int(2), "10.1.2.3/24")}, true},
		"of no interface":      {all, []*current.IPConfig{ip(nil, "10.1.2.3/24")}, true},
		"two families":         {all, []*current.IPConfig{ip(current.Int(2), "fd00::3/64"), ip(current.Int(2), "10.1.2.3/16")}, true},
		"without a host's end": {all[2:], []*current.IPConfig{ip(current.Int(0), "10.1.2.3/24")}, true},
		"two of them":          {append(all, &current.Interface{Name: hostName(), Mac: "00:00:00:00:00:04"}), nil, true},
		"without a pod's end":  {all[:2], nil, true},
		"the host's address":   {all, []*current.IPConfig{ip(current.Int(0), "10.1.2.3/24")}, false},
		"lo's":                 {[]*current.Interface{lo}, []*current.IPConfig{ip(current.Int(0), "127.0.0.1/8")}, false},
		"of none that is":      {all, []*current.IPConfig{ip(current.Int(3), "10.1.2.3/24")}, false},
		"below none":           {all, []*current.IPConfig{ip(current.Int(-1), "10.1.2.3/24")}, false},
		"no address":           {all, []*current.IPConfig{{Interface: current.Int(2)}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			r := &current.Result{Interfaces: tt.interfaces, IPs: tt.ips}
			a, ok := Keep(r, "eth0")
			if ok != tt.ok {
				t.Fatalf("ok %v", ok)
			}
			if !ok {
				return
			}
			kept := a.Result("/run/netns/x", "eth0")
			see := func(r *current.Result) (host [2]string, _, _ any) {
				if h := hostEnd(r, "eth0"); h != nil {
					host = [2]string{h.Name, h.Mac}
				}
				ps, err := prefixes(r.IPs)
				if err != nil {
					t.Error(err)
				}
				c := &portmapConf{}
				if err := json.Unmarshal([]byte(`{"runtimeConfig":{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]}}`), c); err != nil {
					t.Error(err)
				}
				maps, err := c.mappings(Call{IfName: "eth0"}, r)
				if err != nil {
					t.Error(err)
				}
				return host, ps, maps
			}
			h1, p1, m1 := see(r)
			h2, p2, m2 := see(kept)
			if h1 != h2 || !reflect.DeepEqual(p1, p2) || !reflect.DeepEqual(m1, m2) {
				t.Errorf("%v %v %v, want %v %v %v", h2, p2, m2, h1, p1, m1)
			}
		})
	}
}
