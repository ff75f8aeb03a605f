package enginetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/cgroups"
	_ "github.com/opencontainers/cgroups/devices" // sets cgroups.DevicesSetV2
	devices "github.com/opencontainers/cgroups/devices/config"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

var applets = strings.Fields(`[ cat chmod chown cut dd df echo env expr false find grep head hostname id ionice ip kill ln ls
	mkdir mkfifo mknod mount nc nproc od printf ps pwd readlink rm sed seq setsid sh sleep sort stat stty sync tail test
	touch tr true tty ulimit umount uname unshare usleep wc yes`)

// makeLayer writes the root file system: static busybox, its applets as links, and the usual directories.
func makeLayer(dir string) error {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return fmt.Errorf("busybox-static is missing: %w", err)
	}
	for _, d := range []string{"bin", "dev", "etc", "mnt", "proc", "root", "sys", "tmp", "data/sub", "usr/bin", "home/joe"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	for d, mode := range map[string]os.FileMode{"tmp": 0o777 | os.ModeSticky, "root": 0o700, "home/joe": 0o700} {
		if err := os.Chmod(filepath.Join(dir, d), mode); err != nil {
			return err
		}
	}
	in, err := os.Open(busybox)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(filepath.Join(dir, "bin/busybox"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		return errors.Join(err, out.Close())
	}
	if err := out.Close(); err != nil {
		return err
	}
	for _, a := range applets {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", a)); err != nil {
			return err
		}
	}
	for name, f := range map[string]struct {
		text string
		mode os.FileMode
	}{
		"etc/passwd":     {"root:x:0:0::/root:/bin/sh\njoe:x:1000:1000::/home/joe:/bin/sh\n", 0o644},
		"etc/group":      {"root:x:0:\njoe:x:1000:\n", 0o644},
		"data/file":      {"layer\n", 0o644},
		"bin/notexec":    {"not a program\n", 0o644},
		"bin/garbage":    {"\x00\x01\x02garbage", 0o755},
		"usr/bin/script": {"#!/bin/sh\necho script \"$@\"\n", 0o755},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(f.text), f.mode); err != nil {
			return err
		}
	}
	return os.Chown(filepath.Join(dir, "home/joe"), 1000, 1000)
}

// hierarchies maps each mounted cgroup hierarchy, as /proc/self/cgroup names it, to its mount point; "" is cgroup2.
func hierarchies() (map[string]string, error) {
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	found := map[string]string{}
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		name, dir := f[1], f[1]
		switch {
		case name == "":
			dir = "unified"
		case strings.HasPrefix(name, "name="):
			dir = strings.TrimPrefix(name, "name=")
		}
		path := "/sys/fs/cgroup/" + dir
		var st unix.Statfs_t
		if name == "" && unix.Statfs("/sys/fs/cgroup", &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
			path = "/sys/fs/cgroup"
		}
		if unix.Statfs(path, &st) == nil && (st.Type == unix.CGROUP_SUPER_MAGIC || st.Type == unix.CGROUP2_SUPER_MAGIC) {
			found[name] = path
		}
	}
	return found, nil
}

// beginCgroup leaves all that it may to the engine's call of finish; see engine.Config.
func beginCgroup(path string, res *specs.LinuxResources) (c *engine.Cgroup, finish func(context.Context) error, err error) {
	all, err := hierarchies()
	if err != nil {
		return nil, nil, err
	}
	c = &engine.Cgroup{V1: map[string]string{}}
	for name, mount := range all {
		if name == "" {
			c.Unified = filepath.Join(mount, path)
		} else {
			c.V1[name] = filepath.Join(mount, path)
		}
	}
	if len(c.V1) > 0 && c.Unified != "" {
		if err := os.MkdirAll(c.Unified, 0o755); err != nil {
			return nil, nil, err
		}
	}
	return c, func(context.Context) error {
		_, err := makeCgroup(path, res)
		return err
	}, nil
}

// makeCgroup makes a cgroup for the native engine as package cgroupdriver would: in every hierarchy, with its limits.
func makeCgroup(path string, res *specs.LinuxResources) (*engine.Cgroup, error) {
	all, err := hierarchies()
	if err != nil {
		return nil, err
	}
	c := &engine.Cgroup{V1: map[string]string{}}
	for name, mount := range all {
		dir := filepath.Join(mount, path)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
		if name == "" {
			c.Unified = dir
		} else {
			c.V1[name] = dir
		}
		if name == "cpuset" { // empty until somebody copies the parent's; no process may join before
			for d := filepath.Dir(path); ; d = path {
				for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
					if err := inherit(filepath.Join(mount, d), f); err != nil {
						return nil, err
					}
				}
				if d == path {
					break
				}
			}
		}
	}
	if len(c.V1) == 0 {
		return c, limitV2(all[""], path, res)
	}
	return c, limit(c, res)
}

// limitV2 is limit where there is nothing but cgroup2.
func limitV2(mount, path string, res *specs.LinuxResources) error {
	if res == nil {
		return nil
	}
	dir := filepath.Join(mount, path)
	if len(res.Devices) > 0 {
		r := &cgroups.Resources{}
		for _, d := range res.Devices {
			rule := &devices.Rule{Type: devices.WildcardDevice, Major: -1, Minor: -1, Permissions: devices.Permissions(d.Access), Allow: d.Allow}
			if d.Type != "" {
				rule.Type = devices.Type(d.Type[0])
			}
			if d.Major != nil {
				rule.Major = *d.Major
			}
			if d.Minor != nil {
				rule.Minor = *d.Minor
			}
			r.Devices = append(r.Devices, rule)
		}
		if err := cgroups.DevicesSetV2(dir, r); err != nil {
			return err
		}
	}
	if res.Pids == nil || res.Pids.Limit == nil {
		return nil
	}
	for at, rest := mount, strings.Split(strings.Trim(path, "/"), "/"); len(rest) > 0; at, rest = filepath.Join(at, rest[0]), rest[1:] {
		if err := os.WriteFile(filepath.Join(at, "cgroup.subtree_control"), []byte("+pids"), 0); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, "pids.max"), fmt.Append(nil, *res.Pids.Limit), 0)
}

func inherit(dir, file string) error {
	b, err := os.ReadFile(filepath.Join(filepath.Dir(dir), file))
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, file), b, 0)
}

func limit(c *engine.Cgroup, res *specs.LinuxResources) error {
	if res == nil {
		return nil
	}
	for _, d := range res.Devices {
		number := func(n *int64) string {
			if n == nil {
				return "*"
			}
			return fmt.Sprint(*n)
		}
		file, rule := "devices.deny", "a"
		if d.Allow {
			file = "devices.allow"
		}
		if d.Type != "" && d.Type != "a" {
			rule = fmt.Sprintf("%s %s:%s %s", d.Type, number(d.Major), number(d.Minor), d.Access)
		}
		if err := os.WriteFile(filepath.Join(c.V1["devices"], file), []byte(rule), 0); err != nil {
			return fmt.Errorf("device rule %q: %w", rule, err)
		}
	}
	if res.Pids != nil && res.Pids.Limit != nil {
		return os.WriteFile(filepath.Join(c.V1["pids"], "pids.max"), fmt.Append(nil, *res.Pids.Limit), 0)
	}
	return nil
}

// cgroupDirs are the directories of a cgroup path that exist.
func cgroupDirs(t testing.TB, path string) []string {
	t.Helper()
	all, err := hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	var dirs []string
	for _, mount := range all {
		if _, err := os.Stat(filepath.Join(mount, path)); err == nil {
			dirs = append(dirs, filepath.Join(mount, path))
		}
	}
	return dirs
}

// removeCgroupParent removes the empty directory below which the run's cgroups were.
func removeCgroupParent(t *testing.T) {
	for _, d := range cgroupDirs(t, testns.CgroupParent()) {
		if err := unix.Rmdir(d); err != nil {
			t.Errorf("rmdir %s: %v", d, err)
		}
	}
}
