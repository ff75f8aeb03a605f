package network

import (
	"testing"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types/create"
)

// What a plugin prints gives addresses that a pod can have, or an error.
func FuzzResult(f *testing.F) {
	f.Add([]byte(`{"cniVersion":"1.0.0","interfaces":[{"name":"veth1"},{"name":"eth0","sandbox":"/n"}],"ips":[{"interface":1,"address":"10.1.0.2/24"}]}`))
	f.Add([]byte(`{"cniVersion":"0.2.0","ip4":{"ip":"10.1.0.2/24"}}`))
	f.Add([]byte(`{"cniVersion":"1.1.0","ips":[null,{"address":"::/0","interface":-1}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		raw, err := create.CreateFromBytes(b)
		if err != nil {
			return
		}
		decoded, text, err := latest(raw)
		if err != nil {
			return
		}
		r, err := result(decoded, text, "net", &libcni.RuntimeConf{IfName: "eth0"})
		if err != nil {
			return
		}
		for _, a := range r.IPs {
			if !a.IsValid() || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() {
				t.Errorf("address %s of %q", a, b)
			}
		}
		if len(r.IPs) == 0 {
			t.Errorf("no address of %q", b)
		}
	})
}
