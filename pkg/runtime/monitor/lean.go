package monitor

import specs "github.com/opencontainers/runtime-spec/specs-go"

// lean is the request without what cri-monitor makes no use of with the native engine: the rules that the compiled filter
// was made from, which are most of a spec, and the limits that the cgroup has. Hooks are shown the whole spec.
func (r *CreateRequest) lean() *CreateRequest {
	if r.OCI != nil || r.Spec == nil || r.Spec.Linux == nil || r.Spec.Hooks != nil {
		return r
	}
	out, spec, linux := *r, *r.Spec, *r.Spec.Linux
	linux.Resources = nil
	if s := linux.Seccomp; s != nil && len(r.Seccomp) > 0 {
		linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: s.DefaultAction, Flags: s.Flags,
			ListenerPath: s.ListenerPath, ListenerMetadata: s.ListenerMetadata}
	}
	spec.Linux, out.Spec = &linux, &spec
	return &out
}
