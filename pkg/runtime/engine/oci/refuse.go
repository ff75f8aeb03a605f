package oci

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	kernelcap "github.com/moby/sys/capability"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
)

// Runtimes ignore JSON fields that they don't know, so a field newer than the runtime has to be refused here: an engine
// never ignores one. Years of fields: ChangeLog of the runtime-spec.
var (
	spec110 = version{1, 1, 0}
	spec121 = version{1, 2, 1}
	spec130 = version{1, 3, 0}
)

// need is one field that is in use, and whether the runtime has it.
type need struct {
	field string
	used  bool
	have  bool
}

func (e *Engine) lacking(needs []need) error {
	var names []string
	for _, n := range needs {
		if n.used && !n.have {
			names = append(names, n.field)
		}
	}
	if len(names) == 0 {
		return nil
	}
	return fmt.Errorf("%s (runtime-spec %s) can't do %s: %w", e.Name(), e.features.version, strings.Join(names, ", "), errdefs.ErrNotImplemented)
}

// refuse names the fields of s that the runtime would ignore.
func (e *Engine) refuse(s *specs.Spec) error {
	c := e.features
	needs := []need{{"domainname", s.Domainname != "", c.since(spec110)}}
	needs = append(needs, c.process(s.Process)...)
	if err := knownCapabilities(s.Process.Capabilities); err != nil {
		return err
	}
	needs = append(needs, c.hooks(s.Hooks)...)
	for i, m := range s.Mounts {
		needs = append(needs, c.mount(fmt.Sprintf("mounts[%d] (%s)", i, m.Destination), m)...)
	}
	if s.Linux != nil {
		needs = append(needs, c.linux(s.Linux)...)
	}
	return e.lacking(needs)
}

// knownCapabilities refuses misspelt names: runtimes only log them, and the container runs with less than it was given.
func knownCapabilities(caps *specs.LinuxCapabilities) error {
	if caps == nil {
		return nil
	}
	for _, name := range slices.Concat(caps.Bounding, caps.Effective, caps.Permitted, caps.Inheritable, caps.Ambient) {
		known := slices.ContainsFunc(kernelcap.ListKnown(), func(k kernelcap.Cap) bool {
			return "CAP_"+strings.ToUpper(k.String()) == name
		})
		if !known {
			return fmt.Errorf("process.capabilities: unknown capability %q: %w", name, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

func (c capability) since(v version) bool { return !c.version.less(v) }

func (c capability) process(p *specs.Process) []need {
	return []need{
		{"process.scheduler", p.Scheduler != nil, c.since(spec110)},
		{"process.ioPriority", p.IOPriority != nil, c.since(spec110)},
		{"process.execCPUAffinity", p.ExecCPUAffinity != nil, c.since(spec121)},
		{"process.apparmorProfile", p.ApparmorProfile != "", c.enabled(func(l *features.Linux) *bool {
			if l.Apparmor == nil {
				return nil
			}
			return l.Apparmor.Enabled
		})},
		{"process.selinuxLabel", p.SelinuxLabel != "", c.enabled(func(l *features.Linux) *bool {
			if l.Selinux == nil {
				return nil
			}
			return l.Selinux.Enabled
		})},
	}
}

// enabled is true unless the runtime says no.
func (c capability) enabled(get func(*features.Linux) *bool) bool {
	if c.known == nil || c.known.Linux == nil {
		return true
	}
	b := get(c.known.Linux)
	return b == nil || *b
}

func (c capability) hooks(h *specs.Hooks) []need {
	if h == nil || c.known == nil || c.known.Hooks == nil {
		return nil
	}
	has := func(kind string) bool { return slices.Contains(c.known.Hooks, kind) }
	return []need{
		//lint:ignore SA1019 deprecated, and still in use
		{"hooks.prestart", len(h.Prestart) > 0, has("prestart")},
		{"hooks.createRuntime", len(h.CreateRuntime) > 0, has("createRuntime")},
		{"hooks.createContainer", len(h.CreateContainer) > 0, has("createContainer")},
		{"hooks.startContainer", len(h.StartContainer) > 0, has("startContainer")},
		{"hooks.poststart", len(h.Poststart) > 0, has("poststart")},
		{"hooks.poststop", len(h.Poststop) > 0, has("poststop")},
	}
}

// recursive are the mount options of mount_setattr(2) with AT_RECURSIVE; a runtime that doesn't know one hands it to
// the file system as data, which a bind mount ignores.
var recursive = []string{"rro", "rrw", "rnosuid", "rsuid", "rnodev", "rdev", "rnoexec", "rexec", "rnosymfollow", "rsymfollow"}

func (c capability) mount(field string, m specs.Mount) []need {
	idmap := len(m.UIDMappings) > 0 || len(m.GIDMappings) > 0 ||
		slices.Contains(m.Options, "idmap") || slices.Contains(m.Options, "ridmap")
	needs := []need{{field + ".uidMappings", idmap, c.idmap()}}
	if c.known == nil || c.known.MountOptions == nil {
		return needs
	}
	for _, o := range m.Options {
		if slices.Contains(recursive, o) {
			needs = append(needs, need{field + " option " + o, true, slices.Contains(c.known.MountOptions, o)})
		}
	}
	return needs
}

// idmap is true only where the runtime says so: older ones ignore the mappings and leave files with the wrong owner.
func (c capability) idmap() bool {
	if c.known == nil || c.known.Linux == nil || c.known.Linux.MountExtensions == nil || c.known.Linux.MountExtensions.IDMap == nil {
		return false
	}
	b := c.known.Linux.MountExtensions.IDMap.Enabled
	return b != nil && *b
}

func (c capability) linux(l *specs.Linux) []need {
	needs := []need{
		{"linux.timeOffsets", len(l.TimeOffsets) > 0, c.namespace(specs.TimeNamespace)},
		// runc before 1.2 ignores it and has no feature for it.
		{"linux.personality", l.Personality != nil, c.since(spec110)},
		{"linux.netDevices", len(l.NetDevices) > 0, c.since(spec130)},
		{"linux.memoryPolicy", l.MemoryPolicy != nil, c.since(spec130)},
		{"linux.intelRdt", l.IntelRdt != nil, c.enabled(func(f *features.Linux) *bool {
			if f.IntelRdt == nil {
				return nil
			}
			return f.IntelRdt.Enabled
		})},
	}
	for _, n := range l.Namespaces {
		needs = append(needs, need{"linux.namespaces " + string(n.Type), true, c.namespace(n.Type)})
	}
	if r := l.Resources; r != nil && r.CPU != nil {
		needs = append(needs,
			need{"linux.resources.cpu.burst", r.CPU.Burst != nil, c.since(spec110)},
			need{"linux.resources.cpu.idle", r.CPU.Idle != nil, c.since(spec110)})
	}
	return append(needs, c.seccomp(l.Seccomp)...)
}

func (c capability) namespace(t specs.LinuxNamespaceType) bool {
	if c.known != nil && c.known.Linux != nil && c.known.Linux.Namespaces != nil {
		return slices.Contains(c.known.Linux.Namespaces, string(t))
	}
	return t != specs.TimeNamespace || c.since(spec110)
}

func (c capability) seccomp(s *specs.LinuxSeccomp) []need {
	if s == nil || c.known == nil || c.known.Linux == nil || c.known.Linux.Seccomp == nil {
		return nil
	}
	k := c.known.Linux.Seccomp
	if k.Enabled != nil && !*k.Enabled {
		return []need{{"linux.seccomp", true, false}}
	}
	var needs []need
	list := func(field, value string, known []string) {
		if known != nil && value != "" {
			needs = append(needs, need{field + " " + value, true, slices.Contains(known, value)})
		}
	}
	list("linux.seccomp.defaultAction", string(s.DefaultAction), k.Actions)
	for _, f := range s.Flags {
		list("linux.seccomp.flags", string(f), k.KnownFlags)
	}
	for _, r := range s.Syscalls {
		list("linux.seccomp.syscalls action", string(r.Action), k.Actions)
	}
	return needs
}
