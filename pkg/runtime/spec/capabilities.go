package spec

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/capability"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// defaultCapabilities is the set that docker, containerd and CRI-O agree on.
var defaultCapabilities = []string{
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
	"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}

// setCapabilities fills all five sets. "ALL" means all that this daemon has itself; a capability that is asked for by
// name and that it lacks is an error. Inheritable stays empty unless ambient needs it (CVE-2022-24769): programs with
// inheritable file capabilities would gain them.
func setCapabilities(in *Input, s *specs.Spec) error {
	host := in.Host.Bounding
	has := func(c string) bool { return slices.Contains(host, c) }
	c := in.security().GetCapabilities()
	add, addAll, err := capNames(c.GetAddCapabilities())
	if err != nil {
		return err
	}
	drop, dropAll, err := capNames(c.GetDropCapabilities())
	if err != nil {
		return err
	}
	ambient, ambientAll, err := capNames(c.GetAddAmbientCapabilities())
	if err != nil {
		return err
	}
	var set []string
	switch {
	case in.privileged():
		// Privileged wins over every list (CRI privileged, effect 1).
		set, add, drop = slices.Clone(host), nil, nil
	case dropAll:
	case addAll:
		set = slices.Clone(host)
	default:
		for _, c := range defaultCapabilities {
			if has(c) {
				set = append(set, c)
			}
		}
	}
	for _, c := range append(slices.Clone(add), ambient...) {
		if !has(c) {
			return fmt.Errorf("add %s: cri-server does not have it in its own bounding set, so it can't give it: %w",
				c, errdefs.ErrPermissionDenied)
		}
	}
	set = append(append(set, add...), ambient...)
	set = slices.DeleteFunc(set, func(c string) bool { return slices.Contains(drop, c) })
	ambient = slices.DeleteFunc(ambient, func(c string) bool { return !slices.Contains(set, c) })
	if ambientAll {
		ambient = set
	}
	set, ambient = sorted(set), sorted(ambient)
	s.Process.Capabilities = &specs.LinuxCapabilities{
		Bounding: set, Permitted: set, Effective: set, Inheritable: ambient, Ambient: ambient,
	}
	return nil
}

func sorted(s []string) []string {
	s = slices.Clone(s)
	slices.Sort(s)
	return slices.Compact(s)
}

// known holds every capability's name as the specs write it.
var known = func() map[string]bool {
	m := map[string]bool{}
	for _, c := range capability.ListKnown() {
		m["CAP_"+strings.ToUpper(c.String())] = true
	}
	return m
}()

// capNames takes names with and without CAP_, in any case, and "ALL".
func capNames(names []string) (caps []string, all bool, err error) {
	for _, n := range names {
		u := strings.ToUpper(n)
		if u == "ALL" || u == "CAP_ALL" {
			all = true
			continue
		}
		if !strings.HasPrefix(u, "CAP_") {
			u = "CAP_" + u
		}
		if !known[u] {
			return nil, false, invalid("unknown capability %q", n)
		}
		caps = append(caps, u)
	}
	return caps, all, nil
}
