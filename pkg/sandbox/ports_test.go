package sandbox

import (
	"slices"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/pkg/network"
)

// PortMapping: host_port 0 means none; protocol, container_port and host_ip reach the network as they are.
func TestPortMappings(t *testing.T) {
	sb := &Sandbox{Config: &runtimeapi.PodSandboxConfig{PortMappings: []*runtimeapi.PortMapping{
		{ContainerPort: 80}, {ContainerPort: 80, HostPort: 8080}, {Protocol: runtimeapi.Protocol_UDP, ContainerPort: 53, HostPort: 5353, HostIp: "::1"},
		{Protocol: runtimeapi.Protocol_SCTP, ContainerPort: 1, HostPort: 2},
	}}}
	got := (&Sandboxes{}).pod(sb).PortMappings
	want := []network.PortMapping{{Protocol: "tcp", ContainerPort: 80, HostPort: 8080}, {Protocol: "udp", ContainerPort: 53, HostPort: 5353, HostIP: "::1"},
		{Protocol: "sctp", ContainerPort: 1, HostPort: 2}}
	if !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
}
