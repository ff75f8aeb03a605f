package doctor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// least is the oldest kernel with what the native engine needs: mount_setattr(2) of 5.12, cgroup.kill of 5.14.
const leastMajor, leastMinor = 5, 14

func checkRoot(*host) []Finding {
	if os.Geteuid() != 0 {
		return []Finding{{Code: "not-root", Severity: Error, Title: "not run as root",
			Text: "cri-server must be root; as this user the doctor sees only a part, too", Fix: "run it as root"}}
	}
	return nil
}

func checkKernel(*host) []Finding {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return []Finding{{Code: "kernel", Severity: Error, Title: "no kernel version", Text: err.Error()}}
	}
	f := kernelFinding(unix.ByteSliceToString(u.Release[:]))
	list := []Finding{f}
	if runtime.GOARCH != "amd64" && runtime.GOARCH != "arm64" {
		list = append(list, Finding{Code: "arch", Severity: Error, Title: "the native engine does not know " + runtime.GOARCH,
			Fix: "use an OCI runtime: default_runtime and [runtimes.NAME]"})
	}
	return list
}

func kernelFinding(release string) Finding {
	f := Finding{Code: "kernel", Severity: OK, Title: "Linux " + release}
	major, minor := version(release)
	if major < leastMajor || major == leastMajor && minor < leastMinor {
		f.Severity, f.Since = Error, fmt.Sprintf("%d.%d", leastMajor, leastMinor)
		f.Text = "too old for the native engine (mount_setattr, cgroup.kill)"
		f.Fix = "run a newer kernel, or an OCI runtime: default_runtime and [runtimes.NAME]"
	}
	return f
}

// version takes 6 and 18 from "6.18.2-amd64".
func version(release string) (major, minor int) {
	parts := strings.SplitN(release, ".", 3)
	major, _ = strconv.Atoi(parts[0])
	if len(parts) > 1 {
		digits := strings.TrimRightFunc(parts[1], func(r rune) bool { return r < '0' || r > '9' })
		minor, _ = strconv.Atoi(digits)
	}
	return major, minor
}

func checkNamespaces(h *host) []Finding {
	var list []Finding
	for _, ns := range []string{"mnt", "net", "pid", "ipc", "uts"} {
		if _, err := os.Lstat(filepath.Join(h.proc, "self/ns", ns)); err != nil {
			list = append(list, Finding{Code: "namespace-" + ns, Severity: Error, Title: "the kernel has no " + ns + " namespaces",
				Text: "no pod can run", Fix: "run a kernel with CONFIG_NAMESPACES and its parts"})
		}
	}
	users := readInt(filepath.Join(h.proc, "sys/user/max_user_namespaces"))
	if _, err := os.Lstat(filepath.Join(h.proc, "self/ns/user")); err != nil || users == 0 {
		list = append(list, Finding{Code: "userns", Severity: Warning, Title: "no user namespaces",
			Text: "pods with hostUsers: false can't run", Fix: "sysctl user.max_user_namespaces=65536 (and CONFIG_USER_NS)"})
	} else {
		list = append(list, Finding{Code: "userns", Severity: OK, Title: "user namespaces"})
	}
	if _, err := os.Lstat(filepath.Join(h.proc, "self/ns/cgroup")); err != nil {
		list = append(list, Finding{Code: "cgroupns", Severity: Warning, Title: "no cgroup namespaces",
			Text: "containers see the host's cgroup paths", Since: "4.6"})
	}
	return list
}

func checkMounts(h *host) []Finding {
	var list []Finding
	fs, err := os.ReadFile(filepath.Join(h.proc, "filesystems"))
	if err == nil && !strings.Contains(string(fs), "\toverlay\n") {
		list = append(list, Finding{Code: "overlay", Severity: Warning, Title: "overlayfs is not loaded",
			Text: "without it every container gets a copy of its image", Fix: "modprobe overlay, and have it loaded at boot (modules-load.d)"})
	} else if err == nil {
		list = append(list, Finding{Code: "overlay", Severity: OK, Title: "overlayfs"})
	}
	// mount_setattr with a bad fd: EBADF from a kernel that has it, ENOSYS from one that does not or a sandbox around us.
	if err := unix.MountSetattr(-1, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EPERM) {
		list = append(list, Finding{Code: "mount-setattr", Severity: Error, Title: "no mount_setattr", Since: "5.12",
			Text: "recursive read-only and id-mapped mounts, and the native engine, need it"})
	} else {
		list = append(list, Finding{Code: "mount-setattr", Severity: OK, Title: "mount_setattr (id-mapped, recursive read-only mounts)"})
	}
	return list
}

func checkSeccomp(h *host) []Finding {
	actions, err := os.ReadFile(filepath.Join(h.proc, "sys/kernel/seccomp/actions_avail"))
	if err != nil {
		return []Finding{{Code: "seccomp", Severity: Error, Title: "no seccomp filters", Since: "4.14",
			Text: "containers with RuntimeDefault are refused", Fix: "run a kernel with CONFIG_SECCOMP_FILTER"}}
	}
	f := Finding{Code: "seccomp", Severity: OK, Title: "seccomp filters"}
	if !strings.Contains(string(actions), "user_notif") {
		f.Severity, f.Since, f.Text = Note, "5.0", "profiles with SCMP_ACT_NOTIFY are refused"
	}
	return []Finding{f}
}

// wanted are the capabilities whose lack costs something, with what.
var wanted = []struct {
	bit      uint
	name     string
	severity Severity
	text     string
}{
	{unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN", Error, "no mount and no namespace can be made"},
	{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN", Error, "no pod can be connected"},
	{unix.CAP_SYS_RESOURCE, "CAP_SYS_RESOURCE", Warning, "limits above our own hard limits can't be given, oom_score_adj can't be lowered: both are clamped"},
	{unix.CAP_MKNOD, "CAP_MKNOD", Warning, "images with device nodes can't be unpacked"},
	{unix.CAP_SYS_PTRACE, "CAP_SYS_PTRACE", Note, "inspect sees less of other users' processes"},
}

func checkCapabilities(h *host) []Finding {
	b, err := os.ReadFile(filepath.Join(h.proc, "self/status"))
	if err != nil {
		return []Finding{{Code: "capabilities", Severity: Error, Title: "no capabilities to read", Text: err.Error()}}
	}
	var effective uint64
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "CapEff:"); ok {
			effective, _ = strconv.ParseUint(strings.TrimSpace(v), 16, 64)
		}
	}
	list := []Finding{}
	for _, w := range wanted {
		if effective&(1<<w.bit) == 0 {
			list = append(list, Finding{Code: strings.ToLower(strings.ReplaceAll(w.name, "_", "-")), Severity: w.severity,
				Title: "no " + w.name, Text: w.text, Fix: "give it to cri-server (unit file, container options)"})
		}
	}
	if len(list) == 0 {
		list = append(list, Finding{Code: "capabilities", Severity: OK, Title: "all capabilities that are needed"})
	}
	return list
}

func checkLSM(h *host) []Finding {
	var list []Finding
	if b, err := os.ReadFile(filepath.Join(h.sys, "module/apparmor/parameters/enabled")); err == nil && strings.HasPrefix(string(b), "Y") {
		list = append(list, Finding{Code: "apparmor", Severity: OK, Title: "AppArmor"})
	} else {
		list = append(list, Finding{Code: "apparmor", Severity: Note, Title: "no AppArmor", Text: "pods that ask for a profile are refused"})
	}
	switch mode, err := os.ReadFile(filepath.Join(h.sys, "fs/selinux/enforce")); {
	case err != nil:
		list = append(list, Finding{Code: "selinux", Severity: Note, Title: "no SELinux"})
	case strings.TrimSpace(string(mode)) == "1":
		list = append(list, Finding{Code: "selinux", Severity: OK, Title: "SELinux, enforcing"})
	default:
		list = append(list, Finding{Code: "selinux", Severity: OK, Title: "SELinux, permissive"})
	}
	return list
}

// readInt is -1 when there is nothing to read.
func readInt(path string) int64 {
	b, err := os.ReadFile(path)
	if err != nil {
		return -1
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return -1
	}
	return n
}
