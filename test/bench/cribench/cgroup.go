package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const cgroups = "/sys/fs/cgroup"

// group is a cgroup that holds everything of one runtime: its daemon in "daemon", its pods below "pods". On cgroup v1 the
// daemon is put into the cpuacct hierarchy only.
type group struct {
	path  string // in the hierarchies, such as /cri-node-bench-1/t3
	units *units // with the systemd driver
}

func cgroup2() bool {
	var st unix.Statfs_t
	return unix.Statfs(cgroups, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC
}

func accounting() string {
	if cgroup2() {
		return cgroups
	}
	return filepath.Join(cgroups, "cpuacct")
}

func newGroup(path string) (*group, error) {
	g := &group{path: path}
	return g, os.MkdirAll(filepath.Join(accounting(), path, "daemon"), 0o755)
}

// pods is the parent of pods, as kubelet would name it.
func (g *group) pods() string {
	if g.units != nil {
		return g.path
	}
	return g.path + "/pods"
}

// pod is the parent of one pod's cgroups. Kubelet makes one for each pod, and so does the bench.
func (g *group) pod(name string) string {
	if g.units != nil {
		return g.podSlice(name)
	}
	return g.pods() + "/" + name
}

// addPod makes it in every hierarchy.
func (g *group) addPod(name string) error {
	if g.units != nil {
		return g.units.startSlice(filepath.Base(g.podSlice(name)))
	}
	for _, root := range hierarchies() {
		dir := filepath.Join(root, g.pod(name))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("the pod's cgroup: %w", err)
		}
		if filepath.Base(root) == "cpuset" {
			if err := inherit(root, g.pod(name)); err != nil {
				return fmt.Errorf("the pod's cgroup: %w", err)
			}
		}
	}
	return nil
}

// removePod removes it if the runtime has not; what is still in use goes with the group.
func (g *group) removePod(name string) {
	if g.units != nil {
		g.units.later(filepath.Base(g.podSlice(name)))
		return
	}
	for _, root := range hierarchies() {
		_ = os.Remove(filepath.Join(root, g.pod(name)))
	}
}

var hierarchies = sync.OnceValue(func() []string {
	if cgroup2() {
		return []string{cgroups}
	}
	var roots []string
	all, _ := filepath.Glob(cgroups + "/*")
	for _, dir := range all {
		if st, err := os.Lstat(dir); err == nil && st.IsDir() { // a co-mounted controller is a link
			roots = append(roots, dir)
		}
	}
	return roots
})

// inherit gives the CPUs and memory nodes of a cpuset to those below it: without, nothing can run there (cpuset(7)).
func inherit(root, path string) error {
	at := root
	for part := range strings.SplitSeq(strings.Trim(path, "/"), "/") {
		above := at
		at = filepath.Join(at, part)
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			if b, err := os.ReadFile(filepath.Join(at, file)); err != nil || len(strings.TrimSpace(string(b))) > 0 {
				continue
			}
			b, err := os.ReadFile(filepath.Join(above, file))
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(at, file), b, 0); err != nil {
				return err
			}
		}
	}
	return nil
}

// procs is the file to write a process id to.
func (g *group) procs() string { return filepath.Join(accounting(), g.path, "daemon", "cgroup.procs") }

// cpu is what everything in the group, and what was in it and ended, has used.
func (g *group) cpu() time.Duration {
	dir := filepath.Join(accounting(), g.path)
	if !cgroup2() {
		used := time.Duration(number(filepath.Join(dir, "cpuacct.usage")))
		if g.units != nil {
			used += g.units.daemon.cpu()
		}
		return used
	}
	return time.Duration(keyed(filepath.Join(dir, "cpu.stat"), "usage_usec")) * time.Microsecond
}

// split is cpu by where it was used: in programs, and in the kernel for them.
func (g *group) split() (user, system time.Duration) {
	dir := filepath.Join(accounting(), g.path)
	if cgroup2() {
		file := filepath.Join(dir, "cpu.stat")
		return time.Duration(keyed(file, "user_usec")) * time.Microsecond, time.Duration(keyed(file, "system_usec")) * time.Microsecond
	}
	return time.Duration(number(filepath.Join(dir, "cpuacct.usage_user"))), time.Duration(number(filepath.Join(dir, "cpuacct.usage_sys")))
}

// kernelMemory is what the kernel charges the pods for its own objects, KiB; -1 where it doesn't tell.
func (g *group) kernelMemory() float64 {
	if cgroup2() {
		return float64(keyed(filepath.Join(cgroups, g.pods(), "memory.stat"), "kernel")) / 1024
	}
	dir := filepath.Join(cgroups, "memory", g.pods())
	if _, err := os.Stat(filepath.Join(dir, "memory.kmem.usage_in_bytes")); err != nil {
		return -1
	}
	return float64(number(filepath.Join(dir, "memory.kmem.usage_in_bytes"))) / 1024
}

func number(file string) int64 {
	b, _ := os.ReadFile(file)
	n, _ := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	return n
}

func keyed(file, key string) int64 {
	b, _ := os.ReadFile(file)
	for l := range strings.Lines(string(b)) {
		if f := strings.Fields(l); len(f) == 2 && f[0] == key {
			n, _ := strconv.ParseInt(f[1], 10, 64)
			return n
		}
	}
	return 0
}

// members are the processes in the group and below.
func (g *group) members() []int {
	var pids []int
	root := filepath.Join(accounting(), g.path)
	if g.units != nil && !cgroup2() {
		root = filepath.Join(cgroups, "systemd", g.path)
	}
	_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil //nolint:nilerr // cgroups go away while one looks
		}
		b, _ := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		for _, f := range strings.Fields(string(b)) {
			if pid, err := strconv.Atoi(f); err == nil {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	slices.Sort(pids)
	return pids
}

// kill ends what is left in the group.
func (g *group) kill() {
	for range 100 {
		left := g.members()
		if len(left) == 0 {
			return
		}
		for _, pid := range left {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// remove removes the cgroup in all hierarchies. Those of pods must be gone, but for parents that runtimes leave.
func (g *group) remove() error {
	if g.units != nil {
		return g.close()
	}
	roots, _ := filepath.Glob(cgroups + "/*" + g.path)
	if cgroup2() {
		roots = []string{cgroups + g.path}
	}
	var errs []error
	for _, root := range roots {
		var dirs []string
		_ = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, path)
			}
			return nil
		})
		for _, d := range slices.Backward(dirs) {
			if err := os.Remove(d); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
			}
		}
	}
	if len(errs) > 0 {
		return fmt.Errorf("cgroups: %w", errs[0])
	}
	return nil
}

// pss is a process's proportional share of memory, Pss or a part of it as smaps_rollup names it, KiB; 0 if it is gone.
func pss(pid int, part string) float64 {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	for l := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(l, part+":"); ok {
			n, _ := strconv.ParseFloat(strings.Fields(v)[0], 64)
			return n
		}
	}
	return 0
}

func comm(pid int) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	return strings.TrimSpace(string(b))
}
