// Package cgroupdriver makes, limits, measures and removes the cgroups of pods' containers.
//
// kubelet owns the pod's cgroup and everything above it; this package owns one cgroup per container (and one for pause)
// directly below it, and never changes a cgroup it did not make, except for what makes the parent usable: on v2 it
// enables controllers in cgroup.subtree_control, on v1 it fills an empty cpuset. Parents that are missing it makes, and
// takes away with their last child. A cgroup below a container's is an exec session's: it has no limits of its own and
// exists only in the hierarchy by which it is killed.
//
// Of pause's cgroup on v1 there is less: see BeginIdle.
//
// With the systemd driver the container's cgroup is a transient scope, delegated to this package, and systemd knows its
// limits as far as it has words for them. Only creation, updates and removal talk to systemd; processes join, are
// measured, frozen and killed by files alone.
//
// What it owns is on record in the kernel: an extended attribute of the directory names the owner, so that a server
// that starts again finds its own cgroups and never another's. One Driver serves one node; it is safe for concurrent
// use, has no global lock, and runs no goroutine per container.
package cgroupdriver

import (
	"context"
	"path"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

// Driver is the cgroupfs or the systemd driver, on v1 or v2.
type Driver interface {
	// Name is "cgroupfs" or "systemd", as RuntimeConfig reports it.
	Name() string
	// Version is 1 (also for a hybrid layout) or 2.
	Version() int

	// Path returns the cgroup path of container id under parent, below the hierarchies' mounts. An empty parent means
	// the driver's own default. A parent in the other driver's form is an ErrInvalidArgument
	// whose message says how to align kubelet and cri-server.
	Path(parent, id string) (string, error)

	// OCI says how an OCI runtime gets at the cgroup.
	OCI(path string) OCI

	// Create makes the cgroup with its limits before it has a process of the container. Idempotent for the same path. Settle
	// must follow.
	Create(ctx context.Context, path string, res *specs.LinuxResources) (*engine.Cgroup, error)

	// Begin is Create in two parts: the cgroup is there when finish, which must be called and may be nil, has returned nil.
	// Until then it is as engine.Config.FinishCgroup has it. When finish is never called, or fails, Delete removes what there is.
	Begin(ctx context.Context, path string, res *specs.LinuxResources) (cg *engine.Cgroup, finish func(context.Context) error, err error)

	// BeginIdle is Begin for one process that only waits, in a parent that somebody else made and that is the pod's own. On v1 it
	// joins that parent in all hierarchies but those by which it is found, killed, and kept from what it must not do, and
	// has a cgroup of its own in these; Cgroup.Shared names the others. Of res, cpu.shares is for want of nothing there. All
	// other methods take the cgroup for what is its own.
	BeginIdle(ctx context.Context, path string, res *specs.LinuxResources) (cg *engine.Cgroup, finish func(context.Context) error, err error)

	// Settle tells that the container's process pid has joined, or with 0 that none will. The cgroup then stays at least
	// until that process has ended and its end was looked into. Delete does the same as Settle with 0.
	Settle(path string, pid int)

	// Load returns the directories of an existing cgroup (made by Create or by an OCI runtime) without changing it.
	Load(path string) (*engine.Cgroup, error)

	// Update applies every set field of res; unset and zero fields stay as they are. All or nothing: on error the
	// old values are written back.
	Update(ctx context.Context, path string, res *specs.LinuxResources) error

	// Stats reads the cgroup's files. ErrNotFound when it is gone.
	Stats(path string) (*Stats, error)
	// Usage is the part of Stats that the CRI tells of each container and pod, and reads no more: CPU.Usage; of Memory Usage,
	// WorkingSet, RSS, InactiveFile, Available, Limit and the page faults; Swap; all pressures.
	Usage(path string) (*Stats, error)
	// Tasks is how many tasks, the threads of processes, there are in the cgroup and below it: Stats' Pids.Current.
	Tasks(path string) (uint64, error)

	// Pids lists the processes in the cgroup and below it; none when it is gone.
	Pids(path string) ([]int, error)

	// Kill ends every process in the cgroup and below it. Freeze stops them, Thaw lets them go on.
	Kill(ctx context.Context, path string) error
	Freeze(ctx context.Context, path string) error
	Thaw(ctx context.Context, path string) error

	// Delete removes the cgroup and its children, killing what is left in them. Idempotent. It never touches a parent
	// that it did not make.
	Delete(ctx context.Context, path string) error

	// List returns the paths of all container cgroups that a driver with this Config.Owner made, for garbage
	// collection. Exec sessions are not listed: they go with their container.
	List() ([]string, error)
}

// Begin is what Driver.Begin and BeginIdle are.
type Begin = func(ctx context.Context, path string, res *specs.LinuxResources) (cg *engine.Cgroup, finish func(context.Context) error, err error)

// ID is the container whose cgroup path is, as Driver.Path was told.
func ID(p string) string {
	id := path.Base(p)
	if _, _, ok := scopeOf(p); ok {
		id = strings.TrimSuffix(strings.TrimPrefix(id, scopePrefix+"-"), ".scope")
	}
	return id
}

// OCI is how an OCI runtime gets at a cgroup.
type OCI struct {
	CgroupsPath string   // Linux.CgroupsPath in the form that Args imply
	Args        []string // further global arguments of the runtime
	// Cgroup, where it is not nil, is where the runtime itself will make the cgroup: Create must not be called. Else the
	// runtime takes the one that Create made.
	Cgroup *engine.Cgroup
}

// Stats is one reading. Fields a controller does not provide are nil.
type Stats struct {
	Time   time.Time
	CPU    *CPUStats
	Memory *MemoryStats
	Swap   *SwapStats
	Pids   *PidsStats
	IO     *IOStats
}

// CPUStats: times in ns.
type CPUStats struct {
	Usage, User, System       uint64
	Periods, ThrottledPeriods uint64
	ThrottledTime             uint64
	PSI                       *PSI
}

// MemoryStats: bytes, and counts of events since the cgroup was made.
type MemoryStats struct {
	Usage, WorkingSet, RSS, Cache, MappedFile uint64
	ActiveFile, InactiveFile                  uint64
	Kernel                                    uint64  // 0 on v1
	Available                                 *uint64 // limit - working set; nil when unlimited
	Limit                                     uint64  // 0: unlimited
	MaxUsage                                  uint64
	PageFaults, MajorPageFaults               uint64
	FailCount                                 uint64
	OOMKills                                  uint64
	EventsHigh, EventsMax                     uint64
	PSI                                       *PSI
}

// SwapStats in bytes; Available is nil when unlimited.
type SwapStats struct {
	Usage     uint64
	Available *uint64
}

// PidsStats: Limit 0 means unlimited.
type PidsStats struct{ Current, Limit uint64 }

// IOStats sums all devices and lists them one by one.
type IOStats struct {
	Devices []DeviceIO
	PSI     *PSI
}

// DeviceIO: bytes and operations.
type DeviceIO struct {
	Major, Minor                             uint64
	ReadBytes, WriteBytes, ReadIOs, WriteIOs uint64
}

// PSI is pressure-stall information; totals in ns.
type PSI struct{ Some, Full PSILine }

// PSILine: averages in percent.
type PSILine struct {
	Avg10, Avg60, Avg300 float64
	Total                uint64
}
