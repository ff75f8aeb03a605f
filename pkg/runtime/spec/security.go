package spec

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/selinux/go-selinux"
	"github.com/opencontainers/selinux/go-selinux/label"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/seccomp"
)

// profile returns the profile that counts: the message, else the deprecated string form ("", "runtime/default",
// "docker/default", "unconfined", "localhost/REF").
func profile(p *runtimeapi.SecurityProfile, deprecated string) (*runtimeapi.SecurityProfile, error) {
	if p != nil {
		if p.GetProfileType() != runtimeapi.SecurityProfile_Localhost && p.GetLocalhostRef() != "" {
			return nil, invalid("localhost_ref %q with profile type %s", p.GetLocalhostRef(), p.GetProfileType())
		}
		return p, nil
	}
	switch ref, local := strings.CutPrefix(deprecated, "localhost/"); {
	case deprecated == "":
		return nil, nil
	case deprecated == "runtime/default", deprecated == "docker/default":
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}, nil
	case deprecated == "unconfined":
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}, nil
	case local:
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: ref}, nil
	}
	return nil, invalid("profile %q is none of runtime/default, unconfined, localhost/REF", deprecated)
}

// setSeccomp must come after the capabilities: RuntimeDefault depends on them. No profile means unconfined, as the
// proto says; the kubelet sends RuntimeDefault where the pod or its --seccomp-default asks for it.
func setSeccomp(in *Input, s *specs.Spec) error {
	//lint:ignore SA1019 the CRI keeps the old field as a fallback
	p, err := profile(in.security().GetSeccomp(), in.security().GetSeccompProfilePath())
	if err != nil || in.privileged() {
		return err
	}
	s.Linux.Seccomp, err = seccompProfile(in.Host, p, s.Process.Capabilities.Bounding)
	return err
}

func seccompProfile(h *Host, p *runtimeapi.SecurityProfile, caps []string) (*specs.LinuxSeccomp, error) {
	if p == nil {
		return nil, nil
	}
	switch p.GetProfileType() {
	case runtimeapi.SecurityProfile_Unconfined:
		return nil, nil
	case runtimeapi.SecurityProfile_RuntimeDefault:
		return h.Defaults.seccomp(caps)
	case runtimeapi.SecurityProfile_Localhost:
		return seccomp.Localhost(strings.TrimPrefix(p.GetLocalhostRef(), "localhost/"), caps)
	}
	return nil, invalid("unknown profile type %d", p.GetProfileType())
}

func setAppArmor(in *Input, s *specs.Spec) error {
	//lint:ignore SA1019 the CRI keeps the old field as a fallback
	p, err := profile(in.security().GetApparmor(), in.security().GetApparmorProfile())
	if err != nil {
		return err
	}
	if p != nil && p.GetProfileType() == runtimeapi.SecurityProfile_Unconfined {
		return nil
	}
	if !in.Host.AppArmor {
		if p == nil {
			return nil
		}
		return fmt.Errorf("profile %s is asked for, but AppArmor is not enabled on this node: %w", p.GetProfileType(), errdefs.ErrNotImplemented)
	}
	switch {
	case p.GetProfileType() == runtimeapi.SecurityProfile_Localhost:
		name := strings.TrimPrefix(p.GetLocalhostRef(), "localhost/")
		if name == "" {
			return invalid("profile type Localhost without localhost_ref")
		}
		if err := appArmorLoaded(name); err != nil {
			return err
		}
		s.Process.ApparmorProfile = name
	case in.privileged():
	case in.Host.AppArmorDefault != "":
		s.Process.ApparmorProfile = in.Host.AppArmorDefault
	case p != nil:
		return fmt.Errorf("profile RuntimeDefault: no default profile is loaded on this node: %w", errdefs.ErrNotFound)
	}
	return nil
}

func appArmorLoaded(name string) error {
	f, err := os.Open("/sys/kernel/security/apparmor/profiles")
	if err != nil {
		return fmt.Errorf("list loaded profiles: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() { // "name (mode)"
		if strings.HasPrefix(lines.Text(), name+" (") {
			return nil
		}
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("list loaded profiles: %w", err)
	}
	return fmt.Errorf("profile %q is not loaded on this node: %w", name, errdefs.ErrNotFound)
}

// setSELinux gives the container its own options' label, else the pod's. A label made here reserves its level until
// selinux.ReleaseLabel(Process.SelinuxLabel). Privileged containers run unlabelled.
func setSELinux(in *Input, s *specs.Spec) error {
	if !in.Host.SELinux || in.privileged() {
		return nil
	}
	opts := selinuxOptions(in.security().GetSelinuxOptions())
	if len(opts) == 0 && in.ProcessLabel != "" {
		var err error
		if opts, err = selinux.DupSecOpt(in.ProcessLabel); err != nil {
			return fmt.Errorf("take over the pod's label: %w", err)
		}
	}
	var err error
	s.Process.SelinuxLabel, s.Linux.MountLabel, err = label.InitLabels(opts)
	if err != nil {
		return invalid("options %v: %v", opts, err)
	}
	return nil
}

func selinuxOptions(o *runtimeapi.SELinuxOption) []string {
	var opts []string
	for _, e := range []struct{ key, value string }{
		{"user", o.GetUser()}, {"role", o.GetRole()}, {"type", o.GetType()}, {"level", o.GetLevel()},
	} {
		if e.value != "" {
			opts = append(opts, e.key+":"+e.value)
		}
	}
	return opts
}
