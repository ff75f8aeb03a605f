package native

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// cgroupDir is the container's own directory in one v1 hierarchy, or of the unified one beside v1 hierarchies.
type cgroupDir struct {
	name string // "cpu,cpuacct", "systemd", "unified"
	fd   int    // a detached clone; -1 when attached
}

// cgroup makes a cgroup mount: cgroup2 itself, or a tmpfs with the v1 hierarchies in it.
func (b *builder) cgroup(m *mountPoint) error {
	if err := b.join(true); err != nil {
		return err
	}
	if b.place == nil || len(b.place.clones) == 0 || m.Type == "cgroup2" {
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
	for i := range b.place.clones {
		if err := b.hierarchy(top, &b.place.clones[i]); err != nil {
			return err
		}
	}
	// Nothing else is mounted below.
	attrs := unix.MountAttr{Attr_set: m.attrs.set, Attr_clr: m.attrs.clear, Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(top, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &attrs); err != nil {
		return fmt.Errorf("attributes: %w", err)
	}
	if err := m.recursive.apply(top, true); err != nil {
		return fmt.Errorf("recursive attributes: %w", err)
	}
	return m.propagate(top)
}

func (b *builder) hierarchy(top int, c *cgroupDir) error {
	if c.fd < 0 {
		return invalid("a second cgroup mount")
	}
	if err := unix.Mkdirat(top, c.name, 0o755); err != nil {
		return err
	}
	fd := c.fd
	c.fd = -1
	defer unix.Close(fd)
	// Nobody else has come to top yet.
	if err := unix.MoveMount(fd, "", top, c.name, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attach: %w", err)
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
