package cri

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/handler"
)

// RuntimeName is what kubelet puts before container ids and shows as the node's runtime.
const RuntimeName = "cri-server"

// kubeletAPIVersion is what kubelet insists on in VersionResponse.version.
const kubeletAPIVersion = "0.1.0"

// monitorPatience is how long cri-monitor may take to say that it is there. kubelet asks for the status every 5 s, and has
// to learn of it rather than wait.
const monitorPatience = 3 * time.Second

// Version tells who answers. runtime_version and runtime_api_version must be semantic versions.
func (s *Server) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{
		Version: kubeletAPIVersion, RuntimeName: RuntimeName, RuntimeVersion: s.version, RuntimeApiVersion: "v1",
	}, nil
}

// Status tells whether pods can be run, and what the handlers can do.
func (s *Server) Status(ctx context.Context, r *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	resp := &runtimeapi.StatusResponse{
		Status:   &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{s.runtimeReady(ctx), s.networkReady()}},
		Features: &runtimeapi.RuntimeFeatures{SupplementalGroupsPolicy: true, MountOptions: true},
	}
	for _, name := range append([]string{""}, s.handlers.Names()...) {
		h, err := s.handlers.Resolve(name)
		if err != nil {
			return nil, err
		}
		f := h.Features(handler.Features{
			RecursiveReadOnly: s.host.RecursiveReadOnly, UserNamespaces: s.host.UserNamespaces && s.host.IDMappedMounts,
		})
		resp.RuntimeHandlers = append(resp.RuntimeHandlers, &runtimeapi.RuntimeHandler{Name: name, Features: &runtimeapi.RuntimeHandlerFeatures{
			RecursiveReadOnlyMounts: f.RecursiveReadOnly, UserNamespaces: f.UserNamespaces,
		}})
	}
	if !r.GetVerbose() {
		return resp, nil
	}
	var dump bytes.Buffer
	if err := s.cfg.Dump(&dump, true); err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	snapshotter, why := s.images.Snapshotter()
	info, err := infoJSON(map[string]any{
		"images":  map[string]any{"snapshotter": snapshotter, "reason": why},
		"config":  map[string]any{"toml": dump.String(), "cgroupDriver": s.cgroups.Name(), "sandboxImage": ""},
		"version": map[string]any{"version": s.version, "started": s.started},
		"host":    s.host,
	})
	resp.Info = info
	return resp, err
}

func (s *Server) runtimeReady(ctx context.Context) *runtimeapi.RuntimeCondition {
	c := &runtimeapi.RuntimeCondition{Type: runtimeapi.RuntimeReady, Status: true}
	ctx, cancel := context.WithTimeout(ctx, monitorPatience)
	defer cancel()
	if _, err := s.monitor.Version(ctx); err != nil {
		c.Status, c.Reason, c.Message = false, "MonitorNotReady", "cri-monitor does not answer: "+err.Error()
	}
	return c
}

func (s *Server) networkReady() *runtimeapi.RuntimeCondition {
	c := &runtimeapi.RuntimeCondition{Type: runtimeapi.NetworkReady, Status: true}
	if err := s.network.Status(); err != nil {
		c.Status, c.Reason, c.Message = false, "NetworkPluginNotReady", err.Error()
	}
	return c
}

// RuntimeConfig tells kubelet the cgroup driver to use.
func (s *Server) RuntimeConfig(context.Context, *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	driver := runtimeapi.CgroupDriver_CGROUPFS
	if s.cgroups.Name() == "systemd" {
		driver = runtimeapi.CgroupDriver_SYSTEMD
	}
	return &runtimeapi.RuntimeConfigResponse{Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: driver}}, nil
}

// UpdateRuntimeConfig takes the node's pod ranges; an empty one is ignored.
func (s *Server) UpdateRuntimeConfig(ctx context.Context, r *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
	cidr := strings.TrimSpace(r.GetRuntimeConfig().GetNetworkConfig().GetPodCidr())
	if cidr == "" {
		return &runtimeapi.UpdateRuntimeConfigResponse{}, nil
	}
	return &runtimeapi.UpdateRuntimeConfigResponse{}, s.network.SetPodCIDR(ctx, cidr)
}
