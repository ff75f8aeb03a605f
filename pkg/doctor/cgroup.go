package doctor

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"go.yaml.in/yaml/v3"
)

// needed controllers, and what their lack means.
var controllers = []struct {
	name     string
	severity Severity
	text     string
}{
	{"cpu", Warning, "CPU requests and limits have no effect"},
	{"memory", Warning, "memory limits have no effect"},
	{"pids", Warning, "pods can use up the machine's process ids"},
	{"cpuset", Note, "the static CPU manager of kubelet can't pin CPUs"},
	{"io", Note, "block I/O has no weights and no statistics"},
	{"hugetlb", Note, "huge pages can't be limited"},
}

func checkCgroups(h *host) []Finding {
	version, have := h.controllers()
	if version == 0 {
		return []Finding{{Code: "cgroup", Severity: Error, Title: "no cgroup file system is mounted",
			Text: "no container can be made or limited", Fix: "mount -t cgroup2 cgroup2 /sys/fs/cgroup (systemd does it)"}}
	}
	first := Finding{Code: "cgroup-version", Severity: OK, Title: fmt.Sprintf("cgroup v%d", version)}
	if version == 1 {
		first.Severity, first.Title = Warning, "cgroup v1"
		first.Text = "kubelet refuses v1 unless failCgroupV1 is false; no pressure information, no memory.high, no safe delegation"
		first.Fix = "boot with systemd.unified_cgroup_hierarchy=1, and without cgroup_no_v1 exceptions"
	}
	list := slices.Concat([]Finding{first}, h.busyRoot(), h.readOnly(), h.delegated(version))
	for _, c := range controllers {
		// v1 calls it blkio.
		if slices.Contains(have, c.name) || c.name == "io" && slices.Contains(have, "blkio") {
			continue
		}
		list = append(list, Finding{Code: "cgroup-" + c.name, Severity: c.severity, Title: "no cgroup controller " + c.name, Text: c.text,
			Fix: "look at the kernel's command line (cgroup_disable=) and, in a container, at what is delegated to it"})
	}
	return list
}

// busyRoot: in a container the root of the cgroup namespace is a cgroup like others, which can't have both processes and
// children with controllers (cgroups(7), no internal processes). cgroup.type is there in all cgroups but the machine's root.
func (h *host) busyRoot() []Finding {
	dir := filepath.Join(h.sys, "fs/cgroup")
	if _, err := os.Stat(filepath.Join(dir, "cgroup.type")); err != nil {
		return nil
	}
	procs, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	on, _ := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control"))
	if len(procs) == 0 || slices.Contains(strings.Fields(string(on)), "memory") {
		return nil
	}
	return []Finding{{Code: "cgroup-root-busy", Severity: Warning, Title: "processes are in the root of this cgroup namespace",
		Text: "so no controller can be turned on below it, and pods get no limits",
		Fix:  "move them to a cgroup below before cri-server starts, as systemd does: mkdir /sys/fs/cgroup/init; echo PID > /sys/fs/cgroup/init/cgroup.procs"}}
}

// controllers tells the cgroup version (0: none mounted) and the controllers there are. In a hybrid layout those of v1
// count.
func (h *host) controllers() (version int, names []string) {
	dir := filepath.Join(h.sys, "fs/cgroup")
	if b, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers")); err == nil {
		return 2, strings.Fields(string(b))
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return 0, nil
	}
	for _, e := range entries {
		if _, err := os.Stat(filepath.Join(dir, e.Name(), "cgroup.procs")); err == nil {
			names = append(names, strings.Split(e.Name(), ",")...)
			version = 1
		}
	}
	return version, names
}

// controllerDir is where a controller's files are in the cgroups' root; on v1 a hierarchy may have several ("cpu,cpuacct").
func (h *host) controllerDir(version int, name string) string {
	dir := filepath.Join(h.sys, "fs/cgroup")
	if version == 2 {
		return dir
	}
	entries, _ := os.ReadDir(dir) // controllers has read it
	for _, e := range entries {
		if slices.Contains(strings.Split(e.Name(), ","), name) {
			return filepath.Join(dir, e.Name())
		}
	}
	return filepath.Join(dir, name)
}

// readOnly: container runtimes mount a container's cgroups so, unless they are told not to.
func (h *host) readOnly() []Finding {
	b, err := os.ReadFile(filepath.Join(h.proc, "self/mountinfo"))
	if err != nil {
		return nil
	}
	mounts, err := mountinfo.GetMountsFromReader(bytes.NewReader(b), mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil
	}
	for _, m := range mounts {
		// What is mounted elsewhere is not used.
		if strings.HasPrefix(m.Mountpoint, "/sys/fs/cgroup") && slices.Contains(strings.Split(m.Options, ","), "ro") {
			return []Finding{{Code: "cgroup-readonly", Severity: Error, Title: m.Mountpoint + " is read-only", Text: "no container can be made",
				Fix: "mount -o remount,rw " + m.Mountpoint + "; a container that runs cri-server has to be privileged"}}
		}
	}
	return nil
}

// delegated: the root that is seen here is not the machine's, which alone has no cgroup.type (v2) and alone has
// cgroup.sane_behavior (v1).
func (h *host) delegated(version int) []Finding {
	_, marked := os.Stat(filepath.Join(h.controllerDir(version, "memory"), map[int]string{1: "cgroup.sane_behavior", 2: "cgroup.type"}[version]))
	_, there := os.Stat(filepath.Join(h.controllerDir(version, "memory"), "cgroup.procs"))
	if there != nil || (version == 2) != (marked == nil) {
		return nil
	}
	f := Finding{Code: "cgroup-delegated", Severity: Note, Title: "the cgroups here are a subtree of the machine's",
		Text: "whoever made it decides which controllers and how much of the machine all pods together have"}
	var held []string
	for _, l := range []struct{ what, controller, v1, v2 string }{
		{"bytes of memory", "memory", "memory.limit_in_bytes", "memory.max"}, {"processes", "pids", "pids.max", "pids.max"},
		{"µs of CPU time a period", "cpu", "cpu.cfs_quota_us", "cpu.max"}} {
		file := map[int]string{1: l.v1, 2: l.v2}[version]
		b, _ := os.ReadFile(filepath.Join(h.controllerDir(version, l.controller), file)) // empty: no such controller
		value, _, _ := strings.Cut(strings.TrimSpace(string(b)), " ")
		// -1 and "max" are no limit, and so is on v1 what no machine has.
		if n, err := strconv.ParseInt(value, 10, 64); err == nil && n >= 0 && n < 1<<62 {
			held = append(held, value+" "+l.what)
		}
	}
	if len(held) > 0 {
		f.Severity, f.Title = Warning, f.Title+", with limits"
		f.Text = "all pods together get " + strings.Join(held, ", ") + "; kubelet counts with the whole machine"
		f.Fix = "tell kubelet what it does not have (systemReserved), or lift the limits"
	}
	return []Finding{f}
}

// checkDriver: who makes cgroups here, and whether kubelet is told the same.
func checkDriver(h *host) []Finding {
	const kubeletLine = "cgroupDriver: %s in kubelet's configuration"
	_, err := os.Stat(filepath.Join(h.run, "systemd/system")) // sd_booted(3)
	driver := h.cfg.CgroupDriver
	f := Finding{Code: "cgroup-driver", Severity: OK}
	switch {
	case driver == "systemd" && err != nil:
		f.Severity, f.Text = Error, "systemd is not this machine's init: cri-server does not start"
		f.Fix = `cgroup_driver = "auto" in cri-server's configuration, and ` + fmt.Sprintf(kubeletLine, "cgroupfs")
	case driver == "cgroupfs" && err == nil:
		f.Severity, f.Text = Warning, "systemd, this machine's init, takes the cgroups for its own and knows nothing of pods"
		f.Fix = `cgroup_driver = "auto" in cri-server's configuration, and ` + fmt.Sprintf(kubeletLine, "systemd")
	case driver == "systemd" || driver == "cgroupfs":
	case err == nil:
		driver = "systemd"
	default:
		driver = "cgroupfs"
	}
	f.Title = "cgroup driver " + driver
	list := []Finding{f}
	if theirs, where := h.kubeletDriver(); theirs != "" && theirs != driver {
		list = append(list, Finding{Code: "cgroup-driver-kubelet", Severity: Warning, Title: "kubelet's cgroup driver is " + theirs + " (" + where + ")",
			Text: "cri-server's is " + driver + "; kubelet 1.31 and newer ask cri-server and follow it, pods of an older one are refused",
			Fix:  fmt.Sprintf("%s, or cgroup_driver = %q in cri-server's", fmt.Sprintf(kubeletLine, driver), theirs)})
	}
	return list
}

// kubeletDriver is what a running kubelet, or else the configuration where kubeadm puts it, names as cgroup driver, and
// where; "" when neither does.
func (h *host) kubeletDriver() (driver, where string) {
	file := h.kubelet
	lines, _ := filepath.Glob(filepath.Join(h.proc, "[0-9]*/cmdline")) // the pattern is good
	for _, l := range lines {
		b, _ := os.ReadFile(l) // the process may have ended
		args := strings.Split(strings.TrimRight(string(b), "\x00"), "\x00")
		if filepath.Base(args[0]) != "kubelet" {
			continue
		}
		if d := flagValue(args, "cgroup-driver"); d != "" {
			return d, "--cgroup-driver"
		}
		if c := flagValue(args, "config"); c != "" {
			file = c
		}
		break
	}
	var k struct {
		CgroupDriver string `yaml:"cgroupDriver"`
	}
	if b, err := os.ReadFile(file); err != nil || yaml.Unmarshal(b, &k) != nil {
		return "", ""
	}
	return k.CgroupDriver, file
}

// flagValue finds --name=value and --name value.
func flagValue(args []string, name string) string {
	for i, a := range args {
		if v, ok := strings.CutPrefix(a, "--"+name+"="); ok {
			return v
		}
		if a == "--"+name && i+1 < len(args) {
			return args[i+1]
		}
	}
	return ""
}
