// Package spec makes OCI runtime specs from CRI messages. It is the only place where a spec is made.
//
// Its functions are pure but for what Host (probed once) and Root (the image's root file system, read beneath its own
// root) tell them; they touch nothing on the host.
package spec

import (
	"os"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Host is what this node can do, probed once at start.
type Host struct {
	CgroupVersion int
	// Bounding is the daemon's own capability bounding set: what it lacks no container can have.
	Bounding []string
	// OOMScoreAdjMin is the lowest oom_score_adj this process may set (its own where CAP_SYS_RESOURCE is missing).
	OOMScoreAdjMin                                                       int
	AppArmor, SELinux, RecursiveReadOnly, IDMappedMounts, UserNamespaces bool
	// Hugetlb are the page sizes that the hugetlb controller has here ("2MB"); empty: limits of 0 are dropped.
	Hugetlb []string
	// RaiseRlimits is false where CAP_SYS_RESOURCE is missing.
	RaiseRlimits bool
}

// Namespaces are the paths of the pod's namespaces to join; an empty path means the container's own (or the host's,
// where the CRI options say NODE).
type Namespaces struct{ Net, IPC, UTS, PID, User string }

// Input is everything a container's spec depends on.
type Input struct {
	ID        string
	Host      *Host
	Pod       *runtimeapi.PodSandboxConfig
	Container *runtimeapi.ContainerConfig
	Image     *ocispec.ImageConfig
	// Root is the image's root file system (a detached, read-only mount), for /etc/passwd and /etc/group.
	Root       *os.Root
	Namespaces Namespaces
	CgroupPath string
	// Hostname, ResolvConf and Shm are the pod's files on the host, bind mounted unless the container mounts something
	// there itself. Empty: none.
	Hostname, ResolvConf, Shm string
	// Privileged is whether the sandbox allows privileged containers.
	PrivilegedPod bool
}
