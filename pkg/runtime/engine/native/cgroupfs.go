package native

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// cgroupDir is the container's own directory in one v1 hierarchy, or of the unified one beside v1 hierarchies.
type cgroupDir struct {
	name string // "cpu,cpuacct", "systemd", "unified"
	fd   int    // a detached clone; -1 when attached
}

// openCgroups clones the cgroup's directories for a cgroup mount where there are v1 hierarchies; the mount then shows
// the container its own directories only, with and without a cgroup namespace.
func (b *builder) openCgroups() error {
	cg := b.config.Cgroup
	if cg == nil || len(cg.V1) == 0 || !slices.ContainsFunc(b.mounts, func(m *mountPoint) bool { return m.Type == "cgroup" && !m.bind }) {
		return nil
	}
	dirs := map[string]string{}
	for name, dir := range cg.V1 {
		dirs[strings.TrimPrefix(name, "name=")] = dir
	}
	if cg.Unified != "" {
		dirs["unified"] = cg.Unified
	}
	for name, dir := range dirs {
		if name == "" || strings.ContainsAny(name, "/\x00") {
			return invalid("cgroup hierarchy %q", name)
		}
		fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return fmt.Errorf("cgroup %s: %w", dir, classify(err))
		}
		b.cgroups = append(b.cgroups, cgroupDir{name, fd})
	}
	sort.Slice(b.cgroups, func(i, j int) bool { return b.cgroups[i].name < b.cgroups[j].name })
	return nil
}

// cgroup makes a cgroup mount: cgroup2 itself, or a tmpfs with the v1 hierarchies in it.
func (b *builder) cgroup(m *mountPoint) error {
	if len(b.cgroups) == 0 || m.Type == "cgroup2" {
		m := *m
		m.Type = "cgroup2"
		m.mountOptions.filesystem = nil // there are none that all versions of cgroup2 know
		return b.filesystem(&m)
	}
	own := *m
	own.Type, own.Source = "tmpfs", "tmpfs"
	own.attrs.set &^= unix.MOUNT_ATTR_RDONLY
	own.mountOptions.filesystem = []option{{"mode", "755"}}
	top, err := b.newMount(&own)
	if err != nil {
		return err
	}
	defer unix.Close(top)
	t, err := b.target(m.Destination, true, top)
	if err != nil {
		return err
	}
	defer unix.Close(t)
	if err := attach(top, t); err != nil {
		return err
	}
	for i := range b.cgroups {
		if err := b.hierarchy(m, top, &b.cgroups[i]); err != nil {
			return err
		}
	}
	if err := m.attrs.apply(top, false); err != nil {
		return err
	}
	return m.finish(top)
}

func (b *builder) hierarchy(m *mountPoint, top int, c *cgroupDir) error {
	if c.fd < 0 {
		return invalid("a second cgroup mount")
	}
	if err := unix.Mkdirat(top, c.name, 0o755); err != nil {
		return err
	}
	t, err := unix.Openat(top, c.name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(t)
	fd := c.fd
	c.fd = -1
	defer unix.Close(fd)
	if err := propagate(fd, propagation{unix.MS_PRIVATE, false}); err != nil {
		return err
	}
	if err := m.attrs.apply(fd, false); err != nil {
		return err
	}
	if err := attach(fd, t); err != nil {
		return err
	}
	if !strings.Contains(c.name, ",") {
		return nil
	}
	for _, name := range strings.Split(c.name, ",") { // cpu -> cpu,cpuacct
		if err := unix.Symlinkat(path.Base(c.name), top, name); err != nil && !errors.Is(err, unix.EEXIST) {
			return err
		}
	}
	return nil
}
