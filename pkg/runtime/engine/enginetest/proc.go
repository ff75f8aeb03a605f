package enginetest

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// mount is a line of mountinfo (proc_pid_mountinfo(5)).
type mount struct {
	root, point, options, optional, fstype, source, super string
}

func parseMounts(text string) []mount {
	var all []mount
	for line := range strings.Lines(text) {
		head, tail, _ := strings.Cut(strings.TrimSpace(line), " - ")
		h, f := strings.Fields(head), strings.Fields(tail)
		if len(h) < 6 || len(f) < 2 {
			continue
		}
		m := mount{root: h[3], point: h[4], options: h[5], optional: strings.Join(h[6:], " "), fstype: f[0], source: f[1]}
		if len(f) > 2 {
			m.super = f[2]
		}
		all = append(all, m)
	}
	return all
}

// mountsOf reads a process's mounts as they look from its own root.
func mountsOf(t testing.TB, pid int) []mount {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil {
		t.Fatal(err)
	}
	return parseMounts(string(b))
}

// mountAt is the topmost mount at point.
func mountAt(t testing.TB, pid int, point string) mount {
	t.Helper()
	var found *mount
	for _, m := range mountsOf(t, pid) {
		if m.point == point {
			found = &m
		}
	}
	if found == nil {
		t.Fatalf("process %d has no mount at %s", pid, point)
	}
	return *found
}

// has reports that a comma-separated list holds an option.
func has(list, option string) bool { return strings.Contains(","+list+",", ","+option+",") }

// status reads one field of /proc/<pid>/status.
func status(t testing.TB, pid int, field string) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	return statusField(string(b), field)
}

func statusField(text, field string) string {
	for line := range strings.Lines(text) {
		if v, ok := strings.CutPrefix(line, field+":"); ok {
			return strings.Join(strings.Fields(v), " ")
		}
	}
	return ""
}

// nsOf is "pid:[4026531836]" for a process.
func nsOf(t testing.TB, pid int, kind string) string {
	t.Helper()
	s, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func nsPath(pid int, kind string) string { return fmt.Sprintf("/proc/%d/ns/%s", pid, kind) }

// read is the trimmed content of a file.
func read(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// pidsIn are the processes in a cgroup directory and below it.
func pidsIn(dir string) []int {
	var pids []int
	_ = filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil
		}
		b, _ := os.ReadFile(filepath.Join(p, "cgroup.procs"))
		for _, f := range strings.Fields(string(b)) {
			if n, err := strconv.Atoi(f); err == nil {
				pids = append(pids, n)
			}
		}
		return nil
	})
	return pids
}

// equal reports a difference.
func equal[T comparable](t testing.TB, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

// contains reports a missing part.
func contains(t testing.TB, what, got, part string) {
	t.Helper()
	if !strings.Contains(got, part) {
		t.Errorf("%s: %q is not in %q", what, part, got)
	}
}
