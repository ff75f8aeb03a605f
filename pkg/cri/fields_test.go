package cri

import (
	"context"
	"net/netip"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/pkg/network"
	"github.com/seed-9a14075a/cri-server/pkg/sandbox"
)

// PodSandboxNetworkStatus: the first address is ip, further ones are additional_ips; pods with the node's network have none.
func TestPodIPs(t *testing.T) {
	sb := &sandbox.Sandbox{ID: strings.Repeat("a", 64), State: sandbox.Ready, Config: &runtimeapi.PodSandboxConfig{Metadata: metadata()},
		Network: &network.Result{IPs: []netip.Addr{netip.MustParseAddr("10.1.0.2"), netip.MustParseAddr("fd00::2")}}}
	if n := sandboxStatus(sb).Network; n.Ip != "10.1.0.2" || len(n.AdditionalIps) != 1 || n.AdditionalIps[0].Ip != "fd00::2" {
		t.Errorf("got %v", n)
	}
	sb.Config.Linux = &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
		NamespaceOptions: &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE}}}
	if n := sandboxStatus(sb).Network; n.Ip != "" || len(n.AdditionalIps) != 0 {
		t.Errorf("with the node's network: %v", n)
	}
}

// ImageSpec.runtime_handler and RunPodSandboxRequest.runtime_handler: an unknown handler is refused before anything is done.
func TestUnknownHandlerIsRefused(t *testing.T) {
	s := emptyServer(t)
	_, err := s.PullImage(context.Background(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: "127.0.0.1:1/a/b:1", RuntimeHandler: "nope"}})
	_, err2 := s.RunPodSandbox(context.Background(), &runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{Metadata: metadata()}, RuntimeHandler: "nope"})
	for what, err := range map[string]error{"PullImage": err, "RunPodSandbox": err2} {
		if err == nil || !strings.Contains(err.Error(), "nope") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// What cri-server doesn't do it says, and kubelet knows how to take it.
func TestUnimplemented(t *testing.T) {
	s := emptyServer(t)
	_, err := s.CheckpointContainer(context.Background(), &runtimeapi.CheckpointContainerRequest{ContainerId: "c", Location: "/x", Timeout: 1})
	_, err2 := s.CheckpointPod(context.Background(), &runtimeapi.CheckpointPodRequest{PodSandboxId: "p", OutputPath: "/x", ContainerIds: []string{"c"}})
	_, err3 := s.RestorePod(context.Background(), &runtimeapi.RestorePodRequest{CheckpointPath: "/x"})
	for what, err := range map[string]error{"CheckpointContainer": err, "CheckpointPod": err2, "RestorePod": err3} {
		if status.Code(err) != codes.Unimplemented {
			t.Errorf("%s: %v", what, err)
		}
	}
}
