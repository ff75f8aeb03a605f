package spec

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/moby/sys/capability"
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/selinux/go-selinux"
	"golang.org/x/sys/unix"
)

// Host is what this node can do, probed once at start.
type Host struct {
	// Name is the node's host name, the HOSTNAME of pods that have none of their own.
	Name          string
	CgroupVersion int // 1 also for a hybrid layout
	// Bounding is the daemon's own capability bounding set ("CAP_CHOWN"): what it lacks no container can have.
	Bounding []string
	// OOMScoreAdjMin is the lowest oom_score_adj this process may set (its own where CAP_SYS_RESOURCE is missing).
	OOMScoreAdjMin                                                       int
	AppArmor, SELinux, RecursiveReadOnly, IDMappedMounts, UserNamespaces bool
	// AppArmorDefault is the loaded profile that RuntimeDefault means; empty: none is loaded.
	AppArmorDefault string
	// Hugetlb are the page sizes that the hugetlb controller has here ("2MB"); empty: limits of 0 are dropped.
	Hugetlb []string
	// Swap is whether the memory controller can limit swap.
	Swap bool
	// RaiseRlimits is false where CAP_SYS_RESOURCE is missing.
	RaiseRlimits bool
	// NoFileMax is the highest number of open files a process here can be allowed.
	NoFileMax uint64
	// Defaults are not probed but set by the node's configuration.
	Defaults Defaults
}

// ProbeHost asks the kernel. An answer it can't get is an error only where no safe assumption exists.
func ProbeHost() (*Host, error) {
	h := &Host{CgroupVersion: 1, SELinux: selinux.GetEnabled()}
	var err error
	if h.Name, err = os.Hostname(); err != nil {
		return nil, fmt.Errorf("probe host name: %w", err)
	}
	if cgroups.IsCgroup2UnifiedMode() {
		h.CgroupVersion = 2
	}
	last, err := capability.LastCap()
	if err != nil {
		return nil, fmt.Errorf("probe capabilities: %w", err)
	}
	for c := capability.Cap(0); c <= last; c++ {
		if ok, err := capability.GetBound(c); err != nil {
			return nil, fmt.Errorf("probe bounding set: %w", err)
		} else if ok {
			h.Bounding = append(h.Bounding, "CAP_"+strings.ToUpper(c.String()))
		}
	}
	caps, err := capability.NewPid2(0)
	if err == nil {
		err = caps.Load()
	}
	if err != nil {
		return nil, fmt.Errorf("probe capabilities: %w", err)
	}
	h.RaiseRlimits = caps.Get(capability.EFFECTIVE, capability.CAP_SYS_RESOURCE)
	h.OOMScoreAdjMin = -1000
	if !h.RaiseRlimits {
		b, err := os.ReadFile("/proc/self/oom_score_adj")
		if err != nil {
			return nil, fmt.Errorf("probe oom_score_adj: %w", err)
		}
		if h.OOMScoreAdjMin, err = strconv.Atoi(strings.TrimSpace(string(b))); err != nil {
			return nil, fmt.Errorf("probe oom_score_adj: %w", err)
		}
	}
	if h.NoFileMax, err = noFileMax(h.RaiseRlimits); err != nil {
		return nil, err
	}
	h.AppArmor = appArmorEnabled()
	// mount_setattr(2), Linux 5.12, gives both; what a file system lacks shows when it is mounted.
	err = unix.MountSetattr(-1, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	h.RecursiveReadOnly = !errors.Is(err, unix.ENOSYS)
	h.IDMappedMounts = h.RecursiveReadOnly
	h.UserNamespaces = userNamespaces()
	h.Hugetlb = hugetlb(h.CgroupVersion)
	h.Swap = swapLimits(h.CgroupVersion)
	return h, nil
}

// noFileMax: with CAP_SYS_RESOURCE the hard limit can be raised up to fs.nr_open (getrlimit(2)).
func noFileMax(raise bool) (uint64, error) {
	if raise {
		if b, err := os.ReadFile("/proc/sys/fs/nr_open"); err == nil {
			if n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64); err == nil {
				return n, nil
			}
		}
	}
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		return 0, fmt.Errorf("probe RLIMIT_NOFILE: %w", err)
	}
	return r.Max, nil
}

func appArmorEnabled() bool {
	b, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	if err != nil || len(b) == 0 || b[0] != 'Y' {
		return false
	}
	_, err = os.Stat("/sys/kernel/security/apparmor")
	return err == nil
}

func userNamespaces() bool {
	if _, err := os.Stat("/proc/self/ns/user"); err != nil {
		return false
	}
	b, err := os.ReadFile("/proc/sys/user/max_user_namespaces")
	return err == nil && strings.TrimSpace(string(b)) != "0"
}

// hugetlb returns the page sizes only where the controller is mounted (v1) or offered to our part of the tree (v2).
func hugetlb(version int) []string {
	if version == 1 {
		if _, err := os.Stat("/sys/fs/cgroup/hugetlb/cgroup.procs"); err != nil {
			return nil
		}
	} else {
		b, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
		if err != nil || !strings.Contains(" "+strings.TrimSpace(string(b))+" ", " hugetlb ") {
			return nil
		}
	}
	return cgroups.HugePageSizes()
}

// swapLimits: on v1 memory.memsw.* is there unless booted with swapaccount=0; on v2 memory.swap.max is in every cgroup
// but the root, so our own and then any first-level one is asked.
func swapLimits(version int) bool {
	if version == 1 {
		_, err := os.Stat("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes")
		return err == nil
	}
	if own, err := cgroups.ParseCgroupFile("/proc/self/cgroup"); err == nil {
		if _, err := os.Stat("/sys/fs/cgroup" + own[""] + "/memory.swap.max"); err == nil {
			return true
		}
	}
	dirs, err := os.ReadDir("/sys/fs/cgroup")
	if err != nil {
		return false
	}
	for _, d := range dirs {
		if _, err := os.Stat("/sys/fs/cgroup/" + d.Name() + "/memory.swap.max"); err == nil && d.IsDir() {
			return true
		}
	}
	return false
}
