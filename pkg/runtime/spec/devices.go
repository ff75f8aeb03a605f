package spec

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// defaultDeviceRules is what every container may use: the default devices of config-linux.md, pseudo terminals, and
// making (not opening) any node. OCI runtimes add the same by themselves; the native engine's cgroups take them from
// here.
func defaultDeviceRules() []specs.LinuxDeviceCgroup {
	rules := []specs.LinuxDeviceCgroup{
		{Allow: false, Access: "rwm"},
		{Allow: true, Type: "c", Access: "m"},
		{Allow: true, Type: "b", Access: "m"},
	}
	for _, d := range []struct{ major, minor int64 }{
		{1, 3}, {1, 5}, {1, 7}, {1, 8}, {1, 9}, {5, 0}, {5, 2}, {136, -1}, // null zero full random urandom tty ptmx pts/*
	} {
		rules = append(rules, rule("c", d.major, d.minor, "rwm"))
	}
	return rules
}

func rule(kind string, major, minor int64, access string) specs.LinuxDeviceCgroup {
	r := specs.LinuxDeviceCgroup{Allow: true, Type: kind, Major: &major, Access: access}
	if minor >= 0 {
		r.Minor = &minor
	}
	return r
}

func setDevices(in *Input, s *specs.Spec) error {
	rules := defaultDeviceRules()
	var devices []specs.LinuxDevice
	if in.privileged() {
		list := in.HostDevices
		if list == nil {
			list = func() ([]specs.LinuxDevice, error) { return nodes("/dev", "/dev") }
		}
		all, err := list()
		if err != nil {
			return fmt.Errorf("list the node's devices: %w", err)
		}
		devices = all
		rules = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
	}
	for _, d := range in.Container.GetDevices() {
		access := d.GetPermissions()
		if access == "" {
			access = "rwm"
		}
		if strings.Trim(access, "rwm") != "" {
			return invalid("device %q: permissions %q are not of r, w and m", d.GetHostPath(), access)
		}
		to := d.GetContainerPath()
		if to == "" {
			to = d.GetHostPath()
		}
		if !filepath.IsAbs(d.GetHostPath()) || !path.IsAbs(to) {
			return invalid("device %q to %q: both paths must be absolute", d.GetHostPath(), to)
		}
		found, err := nodes(d.GetHostPath(), path.Clean(to))
		if err != nil {
			return err
		}
		if len(found) == 0 {
			return invalid("device %q: there is no device node in it", d.GetHostPath())
		}
		for _, n := range found {
			devices = replace(devices, n)
			if n.Type == "c" || n.Type == "b" {
				rules = append(rules, rule(n.Type, n.Major, n.Minor, access))
			}
		}
	}
	s.Linux.Devices = devices
	s.Linux.Resources.Devices = append(rules, s.Linux.Resources.Devices...)
	return nil
}

func replace(devices []specs.LinuxDevice, d specs.LinuxDevice) []specs.LinuxDevice {
	for i := range devices {
		if devices[i].Path == d.Path {
			devices[i] = d
			return devices
		}
	}
	return append(devices, d)
}

// skipped are the parts of a /dev that are file systems of their own or belong to the node's consoles and containers.
var skipped = map[string]bool{"pts": true, "shm": true, "fd": true, "mqueue": true, ".lxc": true, ".lxd-mounts": true, ".udev": true}

// nodes returns the device node at host as to, or every node below the directory host. Symlinks are followed for host
// itself, not inside: there they name nodes that are found anyway.
func nodes(host, to string) ([]specs.LinuxDevice, error) {
	src, err := filepath.EvalSymlinks(host)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("device %q does not exist: %w", host, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("device %q: %w", host, err)
	}
	var found []specs.LinuxDevice
	err = filepath.WalkDir(src, func(p string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && p != src { // nodes come and go
			return nil
		}
		if err != nil {
			return err
		}
		if d.IsDir() && p != src && skipped[d.Name()] {
			return fs.SkipDir
		}
		if p != src && (d.Name() == "console" || d.Type()&os.ModeDevice == 0) {
			return nil
		}
		if d.IsDir() {
			return nil
		}
		rel, err := filepath.Rel(src, p)
		if err != nil {
			return err
		}
		n, err := node(p, path.Join(to, rel))
		if errors.Is(err, fs.ErrNotExist) && p != src {
			return nil
		}
		if err != nil {
			return err
		}
		found = append(found, *n)
		return nil
	})
	return found, err
}

func node(host, to string) (*specs.LinuxDevice, error) {
	var st unix.Stat_t
	if err := unix.Lstat(host, &st); err != nil {
		return nil, &os.PathError{Op: "lstat", Path: host, Err: err}
	}
	var kind string
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		kind = "c"
	case unix.S_IFBLK:
		kind = "b"
	default:
		return nil, invalid("device %q is not a device node", host)
	}
	mode := os.FileMode(st.Mode &^ unix.S_IFMT)
	return &specs.LinuxDevice{
		Path: to, Type: kind, Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)),
		FileMode: &mode, UID: &st.Uid, GID: &st.Gid,
	}, nil
}
