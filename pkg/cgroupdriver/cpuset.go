package cgroupdriver

import (
	"fmt"
	"path/filepath"

	"github.com/containerd/errdefs"
)

// inheritCpuset fills a new directory of the v1 cpuset hierarchy, and what is empty above: a parent may have been made this
// moment by another Create that has not come to fill it yet, and an empty one is of no use to its maker either. A leaf is a
// container's directory.
func inheritCpuset(dir, root string, leaf bool) error {
	parent := filepath.Dir(dir)
	cpus, err := filledCpuset(parent, root, "cpuset.cpus")
	if err != nil {
		return err
	}
	mems, err := filledCpuset(parent, root, "cpuset.mems")
	if err != nil {
		return err
	}
	if leaf {
		leaveBalancing(dir, parent)
	}
	if err := write(dir, "cpuset.cpus", cpus); err != nil {
		return err
	}
	return write(dir, "cpuset.mems", mems)
}

// leaveBalancing leaves the balancing of load between a container's CPUs to the cgroup above, where that does it for all its
// CPUs: the container's are some of them, so what is balanced is the same. But a cpuset that asks for it itself has the kernel
// build the scheduling domains anew, under a lock of all cpusets and with a walk over every one of them, whenever its CPUs are
// set and once more when it goes: on a node of 500 pods a tenth of a millisecond each time. It must be told before there
// are CPUs, or the telling costs as much (kernel/cgroup/cpuset.c, generate_sched_domains and update_cpumasks_hier; section 1.7 of
// Documentation/admin-guide/cgroup-v1/cpusets.rst). Where the cgroup above does not balance, the container's does as it was born.
func leaveBalancing(dir, parent string) {
	const file = "cpuset.sched_load_balance"
	if above, err := read(parent, file); err == nil && above == "1" {
		_ = write(dir, file, "0") // else it costs more, and is as right
	}
}

// filledCpuset returns the file of dir, filled from above if it was empty.
func filledCpuset(dir, root, file string) (string, error) {
	own, err := read(dir, file)
	if err != nil || own != "" {
		return own, err
	}
	if dir == root {
		return "", fmt.Errorf("%s of %s is empty, so nothing can run below it: %w", file, dir, errdefs.ErrFailedPrecondition)
	}
	if own, err = filledCpuset(filepath.Dir(dir), root, file); err != nil {
		return "", err
	}
	return own, write(dir, file, own)
}
