package oci

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// removeCgroups kills what is in the cgroup of a create that was cut short and removes it from every hierarchy: a
// runtime that was killed in the middle has no record of it. Paths in systemd's form are scopes, which go by themselves.
func removeCgroups(ctx context.Context, path string) error {
	dirs, err := cgroupDirs(path)
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := removeCgroup(ctx, dir); err != nil {
			return err
		}
	}
	return nil
}

// cgroupDirs are the existing directories of a cgroup path in cgroupfs form.
func cgroupDirs(path string) ([]string, error) {
	path = filepath.Clean("/" + path)
	if path == "/" || strings.Contains(path, ":") {
		return nil, nil
	}
	mounts, err := cgroupMounts("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("cgroup mounts: %w", err)
	}
	var dirs []string
	for _, m := range mounts {
		if st, err := os.Stat(filepath.Join(m, path)); err == nil && st.IsDir() {
			dirs = append(dirs, filepath.Join(m, path))
		}
	}
	return dirs, nil
}

// cgroupMounts lists the mount points of cgroup and cgroup2 in a mountinfo file (proc_pid_mountinfo(5)).
func cgroupMounts(mountinfo string) ([]string, error) {
	b, err := os.ReadFile(mountinfo)
	if err != nil {
		return nil, err
	}
	var points []string
	for line := range strings.Lines(string(b)) {
		head, tail, ok := strings.Cut(line, " - ")
		fields := strings.Fields(head)
		if !ok || len(fields) < 5 || !strings.HasPrefix(tail, "cgroup ") && !strings.HasPrefix(tail, "cgroup2 ") {
			continue
		}
		points = append(points, fields[4])
	}
	return points, nil
}

// removeCgroup kills and removes one directory with all below it, until it is gone or ctx ends.
func removeCgroup(ctx context.Context, dir string) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		var dirs []string
		err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, p)
			}
			return nil // directories may go while we look
		})
		if err != nil {
			return err
		}
		for i := len(dirs) - 1; i >= 0; i-- {
			killProcs(filepath.Join(dirs[i], "cgroup.procs"))
			err = unix.Rmdir(dirs[i])
		}
		if len(dirs) == 0 || err == nil || errors.Is(err, unix.ENOENT) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("remove cgroup %s: %w", dir, err)
		case <-time.After(wait): // the kernel tells nobody when a v1 cgroup is empty
		}
	}
}

func killProcs(file string) {
	b, err := os.ReadFile(file)
	if err != nil {
		return
	}
	for _, f := range strings.Fields(string(b)) {
		if pid, err := strconv.Atoi(f); err == nil && pid > 1 {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
	}
}
