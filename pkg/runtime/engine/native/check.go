package native

import (
	"fmt"
	"path/filepath"
	"regexp"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

// refused are the fields of a spec that the engine can't honour, each with what it takes for a spec to ask for it.
var refused = []struct {
	field string
	asked func(*specs.Spec) bool
}{
	{"linux.intelRdt", func(s *specs.Spec) bool { return s.Linux.IntelRdt != nil }},
	{"linux.netDevices", func(s *specs.Spec) bool { return len(s.Linux.NetDevices) > 0 }},
	{"linux.seccomp.listenerPath", func(s *specs.Spec) bool {
		return s.Linux.Seccomp != nil && (s.Linux.Seccomp.ListenerPath != "" || s.Linux.Seccomp.ListenerMetadata != "")
	}},
	{"linux.personality.flags", func(s *specs.Spec) bool { return s.Linux.Personality != nil && len(s.Linux.Personality.Flags) > 0 }},
	{"solaris", func(s *specs.Spec) bool { return s.Solaris != nil }},
	{"windows", func(s *specs.Spec) bool { return s.Windows != nil }},
	{"vm", func(s *specs.Spec) bool { return s.VM != nil }},
	{"zos", func(s *specs.Spec) bool { return s.ZOS != nil }},
	{"freebsd", func(s *specs.Spec) bool { return s.FreeBSD != nil }},
	{"process.commandLine", func(s *specs.Spec) bool { return s.Process.CommandLine != "" }},
	{"process.user.username", func(s *specs.Spec) bool { return s.Process.User.Username != "" }},
}

var validID = regexp.MustCompile(`^[a-z0-9][a-z0-9_.-]*$`)

// check returns the spec to build from, with what is optional filled in, and what the process is to be, or says what is
// wrong with them.
func check(c *engine.Config) (*specs.Spec, *identity, error) {
	if c.Spec == nil || c.Spec.Process == nil {
		return nil, nil, invalid("a spec without a process")
	}
	if !validID.MatchString(c.ID) {
		return nil, nil, invalid("id %q", c.ID)
	}
	if !filepath.IsAbs(c.Dir) {
		return nil, nil, invalid("directory %q is not absolute", c.Dir)
	}
	spec := *c.Spec
	if spec.Linux == nil {
		spec.Linux = &specs.Linux{}
	}
	for _, r := range refused {
		if r.asked(&spec) {
			return nil, nil, fmt.Errorf("%s: not supported by the native engine: %w", r.field, errdefs.ErrNotImplemented)
		}
	}
	if spec.Linux.Seccomp != nil && len(c.Seccomp) == 0 {
		return nil, nil, invalid("linux.seccomp without a compiled filter")
	}
	if err := checkProcess(spec.Process, c.Stdin != nil || c.Stdout != nil || c.Stderr != nil); err != nil {
		return nil, nil, err
	}
	id, err := newIdentity(spec.Process, c.Seccomp, spec.Linux.Seccomp)
	if err != nil {
		return nil, nil, err
	}
	if err := c.Rootfs.Validate(); err != nil {
		return nil, nil, err
	}
	if err := checkLinux(spec.Linux); err != nil {
		return nil, nil, err
	}
	id.hostname, id.domainname = spec.Hostname, spec.Domainname
	return &spec, id, id.common(c.ID, spec.Linux)
}

func checkExec(c *engine.ExecConfig) error {
	if c.Process == nil {
		return invalid("exec without a process")
	}
	if c.Process.CommandLine != "" || c.Process.User.Username != "" {
		return fmt.Errorf("process.commandLine, process.user.username: not supported by the native engine: %w", errdefs.ErrNotImplemented)
	}
	return checkProcess(c.Process, c.Stdin != nil || c.Stdout != nil || c.Stderr != nil)
}

func checkProcess(p *specs.Process, stdio bool) error {
	if p.Terminal && stdio {
		return invalid("process.terminal together with stdio files")
	}
	for _, r := range p.Rlimits {
		if _, ok := rlimits[r.Type]; !ok {
			return invalid("process.rlimits: unknown type %q", r.Type)
		}
	}
	if p.Scheduler != nil {
		if _, ok := policies[p.Scheduler.Policy]; !ok {
			return invalid("process.scheduler.policy %q", p.Scheduler.Policy)
		}
		for _, f := range p.Scheduler.Flags {
			if _, ok := schedFlags[f]; !ok {
				return invalid("process.scheduler.flags: %q", f)
			}
		}
	}
	if p.IOPriority != nil {
		if _, ok := ioClasses[p.IOPriority.Class]; !ok || p.IOPriority.Priority < 0 || p.IOPriority.Priority > 7 {
			return invalid("process.ioPriority %s %d", p.IOPriority.Class, p.IOPriority.Priority)
		}
	}
	return nil
}

func checkLinux(l *specs.Linux) error {
	if p := l.RootfsPropagation; p != "" {
		if _, ok := propagations[p]; !ok {
			return invalid("linux.rootfsPropagation %q", p)
		}
	}
	for clock := range l.TimeOffsets {
		if clock != "monotonic" && clock != "boottime" {
			return invalid("linux.timeOffsets: %q", clock)
		}
	}
	if p := l.Personality; p != nil {
		if _, ok := personalities[p.Domain]; !ok {
			return invalid("linux.personality.domain %q", p.Domain)
		}
	}
	if m := l.MemoryPolicy; m != nil {
		if _, ok := memoryModes[m.Mode]; !ok {
			return invalid("linux.memoryPolicy.mode %q", m.Mode)
		}
		for _, f := range m.Flags {
			if _, ok := memoryFlags[f]; !ok {
				return invalid("linux.memoryPolicy.flags: %q", f)
			}
		}
	}
	return nil
}

// checkNamespaces makes sure that nothing of the host's is changed for a container that shares it.
func checkNamespaces(s *specs.Spec, ns *namespaces) error {
	if (s.Hostname != "" || s.Domainname != "") && !ns.own(unix.CLONE_NEWUTS) {
		return invalid("hostname or domainname without a UTS namespace")
	}
	if len(s.Linux.TimeOffsets) > 0 && ns.made&unix.CLONE_NEWTIME == 0 {
		return invalid("linux.timeOffsets without a new time namespace")
	}
	uids, gids := len(s.Linux.UIDMappings), len(s.Linux.GIDMappings)
	if uids+gids > 0 && !ns.own(unix.CLONE_NEWUSER) {
		return invalid("linux.uidMappings without a user namespace")
	}
	if ns.made&unix.CLONE_NEWUSER != 0 && (uids == 0 || gids == 0) {
		return invalid("a new user namespace without uid and gid mappings")
	}
	return nil
}
