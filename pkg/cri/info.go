package cri

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/pkg/inspect"
	"github.com/seed-9a14075a/cri-server/pkg/operation"
	"github.com/seed-9a14075a/cri-server/pkg/runtime"
	"github.com/seed-9a14075a/cri-server/pkg/sandbox"
)

// infoJSON makes the info map of a verbose answer.
func infoJSON(parts map[string]any) (map[string]string, error) {
	info := map[string]string{}
	for k, v := range parts {
		b, err := json.Marshal(v)
		if err != nil {
			return nil, fmt.Errorf("info %s: %w", k, err)
		}
		info[k] = string(b)
	}
	return info, nil
}

// cgroup describes a cgroup; nil where there is none.
func (s *Server) cgroup(path string) *inspect.Cgroup {
	if path == "" {
		return nil
	}
	g, err := s.cgroups.Load(path)
	if err != nil {
		return nil // gone by now
	}
	return inspect.Limits(path, g.Unified, g.V1)
}

func (s *Server) engineName(handlerName string) string {
	h, err := s.handlers.Resolve(handlerName)
	switch {
	case err != nil:
		return ""
	case h.OCI == nil:
		return "native"
	default:
		return "oci:" + filepath.Base(h.OCI.Path)
	}
}

// sandboxInfo describes a sandbox for PodSandboxStatus.
func (s *Server) sandboxInfo(sb *sandbox.Sandbox) (map[string]string, error) {
	m := sandboxMetadata(sb)
	pod := inspect.Pod{
		ID: sb.ID, Name: m.GetName(), Namespace: m.GetNamespace(), UID: m.GetUid(), Attempt: m.GetAttempt(),
		State: string(sb.State), Handler: sb.Handler, CreatedAt: sb.CreatedAt, Broken: sb.Broken, Pid: sb.Pid,
		Files: map[string]string{}, Operations: timelines(sb.Timeline),
	}
	for what, path := range map[string]string{
		"hostname": sb.Files.Hostname, "hosts": sb.Files.Hosts, "resolv.conf": sb.Files.ResolvConf, "shm": sb.Files.Shm,
		"logs": sb.Config.GetLogDirectory(),
	} {
		if path != "" {
			pod.Files[what] = path
		}
	}
	pod.Cgroup = s.cgroup(sb.CgroupPath)
	if sb.Pid != 0 {
		if ns, err := inspect.Namespaces(sb.Pid, 0, pinned(sb)); err == nil {
			pod.Namespaces = ns
		}
		if pod.Cgroup != nil {
			pod.Processes = inspect.Processes(pod.Cgroup.Dirs...)
		}
	}
	pod.Network = networkInfo(sb)
	pod.Resources, pod.Overhead = podResources(sb.Resources), podResources(sb.Overhead)
	return infoJSON(map[string]any{"info": pod})
}

func pinned(sb *sandbox.Sandbox) map[string]string {
	if sb.NetNS == "" {
		return nil
	}
	return map[string]string{"net": sb.NetNS}
}

func networkInfo(sb *sandbox.Sandbox) *inspect.Network {
	switch {
	case sb.HostNetwork():
		return &inspect.Network{Name: "host"}
	case sb.Network == nil:
		return nil
	}
	n := &inspect.Network{
		Name: sb.Network.Network, NetNS: sb.NetNS, Interface: sb.Network.Interface, HostInterface: sb.Network.HostInterface,
		Bridge: inspect.Bridge(sb.Network.HostInterface),
	}
	if json.Valid(sb.Network.Raw) {
		n.Result = sb.Network.Raw
	}
	for _, ip := range sb.Network.IPs {
		n.IPs = append(n.IPs, ip.String())
	}
	return n
}

// containerInfo describes a container for ContainerStatus.
func (s *Server) containerInfo(ctr *runtime.Container) (map[string]string, error) {
	m := containerMetadata(ctr)
	c := inspect.Container{
		ID: ctr.ID, Name: m.GetName(), Attempt: m.GetAttempt(), PodID: ctr.SandboxID, State: string(ctr.State),
		Handler: ctr.Handler, Engine: s.engineName(ctr.Handler), Image: ctr.Config.GetImage().GetImage(), ImageID: ctr.ImageID,
		CreatedAt: ctr.CreatedAt, StartedAt: ctr.StartedAt, FinishedAt: ctr.FinishedAt, Reason: ctr.Reason,
		Message: ctr.Message, Broken: ctr.Broken, Pid: ctr.Pid, LogPath: ctr.LogPath,
		Operations: timelines(ctr.Timeline, ctr.StartTimeline),
		Rootfs: &inspect.Rootfs{
			Lower: ctr.Rootfs.Lower, Upper: ctr.Rootfs.Upper, Work: ctr.Rootfs.Work, Options: ctr.Rootfs.Options, Path: ctr.Rootfs.Path,
		},
	}
	if ctr.State == runtime.Exited {
		c.ExitCode = &ctr.ExitCode
	}
	for _, mnt := range ctr.Config.GetMounts() {
		c.Mounts = append(c.Mounts, inspect.Mount{Destination: mnt.GetContainerPath(), Source: mnt.GetHostPath(), Type: "bind", Options: mountOptions(mnt)})
	}
	c.Cgroup = s.cgroup(ctr.CgroupPath)
	if ctr.Pid != 0 {
		pausePid, pins := 0, map[string]string(nil)
		if sb, err := s.sandboxes.Get(ctr.SandboxID); err == nil {
			pausePid, pins = sb.Pid, pinned(sb)
		}
		if ns, err := inspect.Namespaces(ctr.Pid, pausePid, pins); err == nil {
			c.Namespaces = ns
		}
		if c.Cgroup != nil {
			c.Processes = inspect.Processes(c.Cgroup.Dirs...)
		}
	}
	return infoJSON(map[string]any{"info": c})
}

func mountOptions(m *runtimeapi.Mount) []string {
	var o []string
	if m.GetReadonly() {
		o = append(o, "ro")
	}
	if m.GetRecursiveReadOnly() {
		o = append(o, "rro")
	}
	switch m.GetPropagation() {
	case runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		o = append(o, "rshared")
	case runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
		o = append(o, "rslave")
	}
	return o
}

// timelines leaves out those that are empty.
func timelines(all ...operation.Timeline) []operation.Timeline {
	return slices.DeleteFunc(all, func(t operation.Timeline) bool { return t.Key == "" })
}
