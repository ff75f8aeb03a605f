package spec

import (
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/seccomp"
)

// Defaults are the node's choices where the CRI says nothing. The zero value is usable.
type Defaults struct {
	// NoFileSoft and NoFileHard limit open files; 0 means 1024 and 524288: a soft limit of 1024 keeps programs that use
	// select(2) or close every fd alive, the hard one lets servers raise it (systemd's defaults since 240).
	NoFileSoft, NoFileHard uint64
	// UnprivilegedPorts and UnprivilegedICMP let containers with a network of their own bind ports below 1024 and send
	// pings without a capability, unless the pod sets the sysctl itself.
	UnprivilegedPorts, UnprivilegedICMP bool
	// SeccompProfile is the file that RuntimeDefault stands for; empty: the built-in profile.
	SeccompProfile string
	// CDIDirs hold CDI specs; those of a later one win. Empty: /etc/cdi and /var/run/cdi.
	CDIDirs []string
}

func (d *Defaults) noFile() (soft, hard uint64) {
	soft, hard = d.NoFileSoft, d.NoFileHard
	if soft == 0 {
		soft = 1024
	}
	if hard == 0 {
		hard = 524288
	}
	return soft, hard
}

// seccomp is the profile that RuntimeDefault stands for.
func (d *Defaults) seccomp(caps []string) (*specs.LinuxSeccomp, error) {
	if d.SeccompProfile == "" {
		return seccomp.RuntimeDefault(caps)
	}
	p, err := seccomp.Localhost(d.SeccompProfile, caps)
	if err != nil {
		return nil, fmt.Errorf("the node's default profile: %w", err)
	}
	return p, nil
}

const (
	unprivilegedPorts = "net.ipv4.ip_unprivileged_port_start"
	unprivilegedICMP  = "net.ipv4.ping_group_range"
)

// podSysctls lays what the pod sets over the node's choices for a pod with a network of its own.
func (d *Defaults) podSysctls(pod *runtimeapi.PodSandboxConfig, mapped []specs.LinuxIDMapping) map[string]string {
	want := map[string]string{}
	if pod.GetLinux().GetSecurityContext().GetNamespaceOptions().GetNetwork() != runtimeapi.NamespaceMode_NODE {
		if d.UnprivilegedPorts {
			want[unprivilegedPorts] = "0"
		}
		if d.UnprivilegedICMP {
			last := uint32(1<<31 - 1) // the range's limit; in a user namespace ids that are not mapped are refused
			if len(mapped) > 0 {
				last = mapped[0].Size - 1
			}
			want[unprivilegedICMP] = fmt.Sprintf("0 %d", last)
		}
	}
	for k, v := range pod.GetLinux().GetSysctls() {
		want[k] = v
	}
	return want
}
