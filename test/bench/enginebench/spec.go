package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// capabilities are those that a CRI container gets by default.
var capabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// spec is a CRI container as kubelet asks for it, without its volumes.
func (c *course) spec(cgroup string) *specs.Spec {
	adj := 1000
	wide := func(options ...string) []string { return append([]string{"nosuid", "noexec", "nodev"}, options...) }
	s := &specs.Spec{
		Version: specs.Version, Hostname: "bench", Root: &specs.Root{},
		Process: &specs.Process{
			Args: []string{"/bin/cat"}, Env: []string{"PATH=/bin", "HOSTNAME=bench"}, Cwd: "/", OOMScoreAdj: &adj,
			Capabilities: &specs.LinuxCapabilities{Bounding: capabilities, Effective: capabilities, Permitted: capabilities},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: wide()},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: wide()},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: wide("mode=1777", "size=65536k")},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: wide("ro")},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: wide("relatime", "ro")},
			{Destination: "/etc/hosts", Type: "bind", Source: filepath.Join(c.layer, "etc/hosts"), Options: []string{"rbind", "rprivate", "rw"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: cgroup, Seccomp: c.profile, Resources: &specs.LinuxResources{Devices: deviceRules(), CPU: c.limit},
			MaskedPaths: []string{"/proc/asound", "/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
				"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
	for _, kind := range []specs.LinuxNamespaceType{
		specs.PIDNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.MountNamespace, specs.NetworkNamespace, specs.CgroupNamespace,
	} {
		ns := specs.LinuxNamespace{Type: kind}
		if _, shared := podNamespaces[kind]; shared && c.inPod {
			ns.Path = filepath.Join(c.base, string(kind))
		}
		s.Linux.Namespaces = append(s.Linux.Namespaces, ns)
	}
	if c.inPod {
		s.Hostname = "" // it is the pod's
	}
	return s
}

// podNamespaces are those that the containers of a pod share, with their names in /proc.
var podNamespaces = map[specs.LinuxNamespaceType]string{specs.NetworkNamespace: "net", specs.IPCNamespace: "ipc", specs.UTSNamespace: "uts"}

// makePod makes such namespaces and pins them in dir.
func makePod(dir string) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its namespaces
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS); err != nil {
				return err
			}
			for kind, name := range podNamespaces {
				at := filepath.Join(dir, string(kind))
				if err := os.WriteFile(at, nil, 0o600); err != nil {
					return err
				}
				if err := unix.Mount("/proc/thread-self/ns/"+name, at, "", unix.MS_BIND, ""); err != nil {
					return err
				}
			}
			return nil
		}()
	}()
	return <-done
}

func deviceRules() []specs.LinuxDeviceCgroup {
	rules := []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
	for _, d := range [][2]int64{{1, 3}, {1, 5}, {1, 7}, {1, 8}, {1, 9}, {5, 0}, {5, 2}} {
		rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &d[0], Minor: &d[1], Access: "rwm"})
	}
	pts := int64(136)
	return append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &pts, Access: "rwm"})
}

// makeLayer writes a root file system of static busybox.
func makeLayer(dir string) error {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return fmt.Errorf("busybox-static is missing: %w", err)
	}
	for _, d := range []string{"bin", "dev", "etc", "proc", "sys", "tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	b, err := os.ReadFile(busybox)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "bin/busybox"), b, 0o755); err != nil {
		return err
	}
	for _, applet := range []string{"cat", "true"} {
		if err := os.Symlink("busybox", filepath.Join(dir, "bin", applet)); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, "etc/hosts"), []byte("127.0.0.1 localhost\n"), 0o644)
}
