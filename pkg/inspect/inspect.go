// Package inspect describes a pod or a container down to the kernel: namespaces, cgroups, layers, interfaces, processes.
//
// Its types are the JSON that a verbose PodSandboxStatus or ContainerStatus has under the key "info", and that `cri-server
// inspect` prints. Its functions read /proc, /sys and cgroup files and nothing else; they change nothing. What is gone
// by the time it is read is left out: a pod may end at any moment.
package inspect

import (
	"encoding/json"
	"time"

	"github.com/seed-9a14075a/cri-server/pkg/operation"
)

// Pod is a pod sandbox.
type Pod struct {
	ID        string    `json:"id"`
	Name      string    `json:"name"`
	Namespace string    `json:"namespace"`
	UID       string    `json:"uid"`
	Attempt   uint32    `json:"attempt"`
	State     string    `json:"state"`
	Handler   string    `json:"handler,omitempty"`
	CreatedAt time.Time `json:"created_at"`
	// Broken says why the pod's record can't be read.
	Broken string `json:"broken,omitempty"`
	// Pid is that of pause, 0 when it has ended.
	Pid        int         `json:"pid"`
	Namespaces []Namespace `json:"namespaces,omitempty"`
	Cgroup     *Cgroup     `json:"cgroup,omitempty"`
	// Resources of all containers together and Overhead of the pod itself, as kubelet last told.
	Resources  *Resources           `json:"resources,omitempty"`
	Overhead   *Resources           `json:"overhead,omitempty"`
	Network    *Network             `json:"network,omitempty"`
	Files      map[string]string    `json:"files,omitempty"` // what they are for → path on the host
	Processes  []Process            `json:"processes,omitempty"`
	Operations []operation.Timeline `json:"operations,omitempty"` // in the order they ran
}

// Container is a container of a pod.
type Container struct {
	ID         string               `json:"id"`
	Name       string               `json:"name"`
	Attempt    uint32               `json:"attempt"`
	PodID      string               `json:"pod_id"`
	State      string               `json:"state"`
	Handler    string               `json:"handler,omitempty"`
	Engine     string               `json:"engine,omitempty"` // native, oci:runc
	Image      string               `json:"image,omitempty"`
	ImageID    string               `json:"image_id,omitempty"`
	CreatedAt  time.Time            `json:"created_at"`
	StartedAt  time.Time            `json:"started_at,omitzero"`
	FinishedAt time.Time            `json:"finished_at,omitzero"`
	ExitCode   *int32               `json:"exit_code,omitempty"`
	Reason     string               `json:"reason,omitempty"`
	Message    string               `json:"message,omitempty"`
	Broken     string               `json:"broken,omitempty"`
	Pid        int                  `json:"pid"` // 0 unless created or running
	Namespaces []Namespace          `json:"namespaces,omitempty"`
	Cgroup     *Cgroup              `json:"cgroup,omitempty"`
	Rootfs     *Rootfs              `json:"rootfs,omitempty"`
	Mounts     []Mount              `json:"mounts,omitempty"`
	LogPath    string               `json:"log_path,omitempty"`
	Processes  []Process            `json:"processes,omitempty"`
	Operations []operation.Timeline `json:"operations,omitempty"`
	// RuntimeSpec is the OCI spec, under the name that tools know from other runtimes.
	RuntimeSpec json.RawMessage `json:"runtimeSpec,omitempty"`
}

// Namespace is one of a process's namespaces.
type Namespace struct {
	Type  string `json:"type"`  // as in /proc/PID/ns: cgroup, ipc, mnt, net, pid, time, user, uts
	Inode uint64 `json:"inode"` // names the namespace while the machine runs
	// Shared says with whom: "own" with nobody, "pod" with the pod's pause, "host" with the machine.
	Shared string `json:"shared"`
	// Path is where the namespace is pinned, if it is.
	Path string `json:"path,omitempty"`
}

// Cgroup is a cgroup with its limits and what is used of them. Unlimited limits are nil.
type Cgroup struct {
	Path    string   `json:"path"`    // as the driver names it
	Version int      `json:"version"` // 1 or 2
	Dirs    []string `json:"dirs"`    // in the file system

	CPUQuota    *int64  `json:"cpu_quota_us,omitempty"` // µs of CPU time per period
	CPUPeriod   *int64  `json:"cpu_period_us,omitempty"`
	CPUWeight   *int64  `json:"cpu_weight,omitempty"` // v2, 1 to 10000
	CPUShares   *int64  `json:"cpu_shares,omitempty"` // v1, 2 to 262144
	Cpuset      string  `json:"cpuset,omitempty"`
	MemoryMax   *int64  `json:"memory_max,omitempty"` // bytes
	MemoryUsage *int64  `json:"memory_usage,omitempty"`
	PidsMax     *int64  `json:"pids_max,omitempty"`
	PidsCurrent *int64  `json:"pids_current,omitempty"`
	CPUUsage    *uint64 `json:"cpu_usage_ns,omitempty"`
}

// Resources are what was asked for; 0 stands for nothing asked.
type Resources struct {
	CPUPeriod int64             `json:"cpu_period_us,omitempty"`
	CPUQuota  int64             `json:"cpu_quota_us,omitempty"` // µs of CPU time per period, -1 without limit
	CPUShares int64             `json:"cpu_shares,omitempty"`
	Memory    int64             `json:"memory_limit,omitempty"` // bytes
	Unified   map[string]string `json:"unified,omitempty"`
}

// Network is a pod's attachment.
type Network struct {
	Name          string          `json:"name"` // of the CNI configuration, or "host"
	NetNS         string          `json:"netns,omitempty"`
	Interface     string          `json:"interface,omitempty"`      // in the pod
	HostInterface string          `json:"host_interface,omitempty"` // its veth peer
	Bridge        string          `json:"bridge,omitempty"`         // that the peer is a port of
	IPs           []string        `json:"ips,omitempty"`
	Result        json.RawMessage `json:"result,omitempty"` // the whole CNI result
}

// Rootfs is what a container's root file system is made of.
type Rootfs struct {
	Lower   []string `json:"lower,omitempty"` // overlay layers, topmost first
	Upper   string   `json:"upper,omitempty"`
	Work    string   `json:"work,omitempty"`
	Options []string `json:"options,omitempty"`
	Path    string   `json:"path,omitempty"` // instead of layers
}

// Mount is one mount that was asked for.
type Mount struct {
	Destination string   `json:"destination"`
	Source      string   `json:"source,omitempty"`
	Type        string   `json:"type,omitempty"`
	Options     []string `json:"options,omitempty"`
}

// Process is one process with its children.
type Process struct {
	Pid int `json:"pid"` // in the server's pid namespace
	// PidInside is the process id in its own pid namespace.
	PidInside int       `json:"pid_inside"`
	State     string    `json:"state,omitempty"` // R, S, D, Z, … as in proc_pid_stat(5)
	UID       int       `json:"uid"`             // in the server's user namespace
	Threads   int       `json:"threads,omitempty"`
	RSS       int64     `json:"rss,omitempty"` // bytes
	Command   string    `json:"command"`
	Children  []Process `json:"children,omitempty"`
}
