package cgroupdriver

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/cgroups"
)

// Config chooses and sets up a driver.
type Config struct {
	// Driver is "auto", "cgroupfs" or "systemd". Empty means auto.
	Driver string
	// Root is the directory whose cgroup mounts are used. Empty: /sys/fs/cgroup.
	Root string
	// DefaultParent is the cgroup of containers whose pod names none, in the driver's form. Empty: /cri-server, or
	// system.slice with systemd.
	DefaultParent string
	// Owner marks this server's cgroups (a trusted.* attribute of the directory), so that List never takes another
	// runtime's, or another cri-server's, for its own. Empty: "cri-server".
	Owner  string
	Logger *slog.Logger
}

// New returns the driver for this node.
func New(cfg Config) (Driver, error) {
	if cfg.Root == "" {
		cfg.Root = "/sys/fs/cgroup"
	}
	if cfg.Owner == "" {
		cfg.Owner = "cri-server"
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	driver := cfg.Driver
	switch driver {
	case "", "auto":
		driver = "cgroupfs"
		if systemdBooted() {
			driver = "systemd"
		}
	case "cgroupfs", "systemd":
	default:
		return nil, fmt.Errorf("cgroup driver %q: must be auto, cgroupfs or systemd: %w", cfg.Driver, errdefs.ErrInvalidArgument)
	}
	l, err := discover(cfg.Root)
	if err != nil {
		return nil, err
	}
	if driver == "systemd" {
		return newSystemd(cfg, l)
	}
	if cfg.DefaultParent == "" {
		cfg.DefaultParent = "/cri-server"
	}
	if systemdForm(cfg.DefaultParent) {
		return nil, fmt.Errorf("default_cgroup_parent = %q is in the systemd driver's form, but the cgroup driver is cgroupfs: %w",
			cfg.DefaultParent, errdefs.ErrInvalidArgument)
	}
	return newCgroupfs(cfg, l)
}

// systemdBooted as in sd_booted(3).
func systemdBooted() bool {
	st, err := os.Lstat("/run/systemd/system")
	return err == nil && st.IsDir()
}

// layout is what is mounted where.
type layout struct {
	// v2 is whether the controllers are on cgroup2; false also for a hybrid layout.
	v2 bool
	// unified is the cgroup2 mount point, "" without one.
	unified string
	// v1 maps a hierarchy's name as in /proc/self/cgroup to its mount point.
	v1 map[string]string
}

// discover finds the mounts at or below root. A hierarchy that is mounted twice counts once, by its shortest path.
func discover(root string) (*layout, error) {
	own, err := cgroups.ParseCgroupFile("/proc/self/cgroup") // by single controller
	if err != nil {
		return nil, fmt.Errorf("find cgroup hierarchies: %w", err)
	}
	names, err := hierarchies()
	if err != nil {
		return nil, err
	}
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, fmt.Errorf("find cgroup mounts: %w", err)
	}
	l := &layout{v1: map[string]string{}}
	shorter := func(old, p string) bool { return old == "" || len(p) < len(old) }
	for _, m := range mounts {
		if m.Mountpoint != root && !strings.HasPrefix(m.Mountpoint, strings.TrimSuffix(root, "/")+"/") {
			continue
		}
		if m.FSType == "cgroup2" {
			if shorter(l.unified, m.Mountpoint) {
				l.unified = m.Mountpoint
			}
			continue
		}
		opts := strings.Split(m.VFSOptions, ",")
		for _, name := range names {
			if containsAll(opts, strings.Split(name, ",")) && shorter(l.v1[name], m.Mountpoint) {
				l.v1[name] = m.Mountpoint
			}
		}
	}
	l.v2 = l.unified != "" && len(l.v1) == 0
	if l.unified == "" && len(l.v1) == 0 {
		return nil, fmt.Errorf("no cgroup file system is mounted at or below %s (this process is in %v): %w", root, own, errdefs.ErrNotFound)
	}
	return l, nil
}

// hierarchies returns the names in /proc/self/cgroup of the v1 hierarchies: "cpu,cpuacct", "name=systemd".
func hierarchies() ([]string, error) {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, fmt.Errorf("find cgroup hierarchies: %w", err)
	}
	var names []string
	for line := range strings.Lines(string(b)) {
		if f := strings.SplitN(line, ":", 3); len(f) == 3 && f[1] != "" {
			names = append(names, f[1])
		}
	}
	return names, nil
}

func containsAll(have, want []string) bool {
	set := map[string]bool{}
	for _, h := range have {
		set[h] = true
	}
	for _, w := range want {
		if !set[w] {
			return false
		}
	}
	return true
}

// Path joins parent and id; see Driver.
func (d *cgroupfs) Path(parent, id string) (string, error) {
	if parent == "" {
		parent = d.parent
	}
	if systemdForm(parent) {
		return "", fmt.Errorf("cgroup parent %q is in the systemd driver's form, but cri-server uses cgroupfs: set cgroupDriver: cgroupfs in the "+
			"kubelet's configuration, or cgroup_driver = \"systemd\" in cri-server's: %w", parent, errdefs.ErrInvalidArgument)
	}
	if id == "" || strings.ContainsAny(id, "/\x00") || id == "." || id == ".." {
		return "", fmt.Errorf("cgroup of container %q: not a name: %w", id, errdefs.ErrInvalidArgument)
	}
	p := path.Join("/", parent, id)
	if err := checkPath(parent); err != nil {
		return "", err
	}
	return p, nil
}

// systemdForm: "a-b.slice", "/a.slice/a-b.slice" or "a-b.slice:prefix:name".
func systemdForm(parent string) bool {
	return strings.HasSuffix(strings.TrimSuffix(parent, "/"), ".slice") || strings.Count(parent, ":") == 2
}

// checkPath refuses what would name a cgroup outside the mounts, or one of a hierarchy's own files.
func checkPath(p string) error {
	for part := range strings.SplitSeq(p, "/") {
		if part == ".." || strings.ContainsRune(part, 0) || strings.HasPrefix(part, "cgroup.") {
			return fmt.Errorf("cgroup path %q: %w", p, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// clean is what every method does with its path first. The root cgroup is nobody's container.
func clean(p string) (string, error) {
	if err := checkPath(p); err != nil {
		return "", err
	}
	if p = filepath.Clean("/" + p); p == "/" {
		return "", fmt.Errorf("cgroup path is the root: %w", errdefs.ErrInvalidArgument)
	}
	return p, nil
}

var errGone = errors.New("the cgroup does not exist")
