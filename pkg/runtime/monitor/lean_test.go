package monitor

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestLean(t *testing.T) {
	full := func() *CreateRequest {
		return &CreateRequest{ID: "id", Seccomp: []byte("filter"), Spec: &specs.Spec{Hostname: "h", Linux: &specs.Linux{
			MaskedPaths: []string{"/proc/keys"}, Resources: &specs.LinuxResources{Pids: &specs.LinuxPids{}},
			Seccomp: &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Flags: []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagLog},
				Architectures: []specs.Arch{specs.ArchX86_64}, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}}}},
		}}}
	}
	lean := full()
	lean.Spec.Linux.Resources = nil
	lean.Spec.Linux.Seccomp.Architectures, lean.Spec.Linux.Seccomp.Syscalls = nil, nil
	for name, tt := range map[string]struct {
		change func(*CreateRequest)
		want   func(*CreateRequest) *CreateRequest
	}{
		"native":   {func(*CreateRequest) {}, func(*CreateRequest) *CreateRequest { return lean }},
		"oci":      {func(r *CreateRequest) { r.OCI = &OCIRuntime{Path: "runc"} }, func(r *CreateRequest) *CreateRequest { return r }},
		"hooks":    {func(r *CreateRequest) { r.Spec.Hooks = &specs.Hooks{} }, func(r *CreateRequest) *CreateRequest { return r }},
		"no linux": {func(r *CreateRequest) { r.Spec.Linux = nil }, func(r *CreateRequest) *CreateRequest { return r }},
		"no spec":  {func(r *CreateRequest) { r.Spec = nil }, func(r *CreateRequest) *CreateRequest { return r }},
		"no filter": {func(r *CreateRequest) { r.Seccomp = nil }, func(r *CreateRequest) *CreateRequest {
			r.Spec.Linux.Resources = nil
			return r
		}},
	} {
		t.Run(name, func(t *testing.T) {
			r, before := full(), full()
			tt.change(r)
			tt.change(before)
			got := r.lean()
			if d := cmp.Diff(before, r); d != "" {
				t.Errorf("the caller's request was changed: %s", d)
			}
			if d := cmp.Diff(tt.want(before), got); d != "" {
				t.Error(d)
			}
		})
	}
}
