package embedded

import (
	"testing"

	"github.com/seed-9a14075a/cri-server/pkg/network/hostlocal"
)

// A plugin's configuration comes from whatever wrote the conflist: any bytes are taken or refused.
func FuzzConf(f *testing.F) {
	f.Add([]byte(`{"cniVersion":"1.0.0","name":"n","type":"bridge","bridge":"cni0","isGateway":true,"ipMasq":true,"ipam":{"type":"host-local","ranges":[[{"subnet":"10.9.0.0/24"}],[{"subnet":"fd00::/64","rangeStart":"fd00::9"}]],"routes":[{"dst":"0.0.0.0/0"}]}}`), "IP=10.9.0.7;MAC=02:00:00:00:00:01")
	f.Add([]byte(`{"cniVersion":"0.2.0","name":"n","type":"host-local","ipam":{"subnet":"10.0.0.0/31"},"prevResult":{"ip4":{"ip":"10.0.0.1/24"}}}`), "")
	f.Add([]byte(`{"cniVersion":"1.1.0","name":"n","type":"portmap","runtimeConfig":{"portMappings":[{"hostPort":80,"containerPort":80,"protocol":"tcp"}]},"prevResult":{"ips":[{"address":"10.0.0.1/24","interface":9}]}}`), "K")
	f.Fuzz(func(t *testing.T, stdin []byte, args string) {
		if c, err := parseConf("bridge", stdin); err == nil {
			b, err := parseBridge(c, args, stdin)
			if err == nil && b.mac != nil && len(b.mac) != 6 {
				t.Errorf("hardware address %v", b.mac)
			}
		}
		c, err := hostlocal.Parse(stdin, args, "/d")
		if err == nil && (len(c.Ranges) == 0 || c.Network == "") {
			t.Errorf("accepted %+v", c)
		}
	})
}
