// Package engine defines how a container's processes come into being.
//
// An Engine turns an OCI runtime-spec and a root file system into processes. It runs inside the process that shall be
// their parent (cri-monitor; in tests the test binary), and it never waits for a child itself: a reaper.Reaper does.
// Two engines exist: native (this project's own) and oci (drives an OCI runtime binary such as runc or crun). Both pass
// the suite in enginetest.
//
// What an engine can't do for a given spec it refuses with an errdefs.ErrNotImplemented that names the field; it
// never ignores a field.
package engine

import (
	"context"
	"encoding/json"
	"os"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/rootfs"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/reaper"
)

// Engine creates containers. It is safe for concurrent use.
type Engine interface {
	// Name is "native", or "oci:" and the runtime binary's base name.
	Name() string

	// Create builds the container up to, but without, the first instruction of its process: namespaces, mounts,
	// cgroup, limits. On error nothing is left behind. The caller keeps ownership of every file in c.
	Create(ctx context.Context, c *Config) (Container, error)

	// Adopt goes on with a container that an engine of the same name has saved, in another process: the one that this
	// has replaced by execve(2), or one that has died. It takes over the files in s, also on error. The processes may
	// have another parent by now; see reaper.Attend. ErrDataLoss when s can't be understood.
	Adopt(ctx context.Context, s *Saved) (*Adopted, error)
}

// Saved is a container as Adopt needs it.
type Saved struct {
	Data json.RawMessage `json:"data"` // the engine's own
	// Newer: an engine of the same name that knows nothing of this field would misread Data.
	Newer bool `json:"-"`
	// Files are descriptors in an order of the engine's own. Those that Save returns stay the container's.
	Files []int `json:"-"`
	// Sessions are the pids of the exec sessions whose processes were saved too.
	Sessions []int `json:"sessions,omitempty"`
	// What follows is set by the caller of Adopt. Pending: it was saved before its Start had succeeded. Died: whoever
	// saved it has died, so that it may have been started since. Starting: such a Start was begun.
	Pending, Died, Starting bool `json:"-"`
}

// Adopted is what Adopt returns.
type Adopted struct {
	Container Container
	Sessions  []Process // as in Saved.Sessions
	// Pending: the container still waits for Start. One that was saved before its Start may run since then.
	Pending bool
	// StartError is why a Start that was cut short did not succeed; the container has been killed then.
	StartError error
}

// Config is everything an engine needs to create one container.
type Config struct {
	// ID is unique on the node for the life of the container: [a-z0-9][a-z0-9_.-]*.
	ID string

	// Spec is the OCI runtime-spec. Spec.Root.Path is ignored: Rootfs says what the root is made of.
	// Spec.Root.Readonly counts. Linux.CgroupsPath is used by the oci engine only.
	Spec *specs.Spec

	// Rootfs is the container's root file system.
	Rootfs rootfs.Rootfs

	// Seccomp is the compiled filter (an array of struct sock_filter in native byte order), made by package
	// seccomp from Spec.Linux.Seccomp. The native engine loads it; a spec with a profile but no compiled filter is
	// refused. The oci engine hands the profile to the runtime and ignores this.
	Seccomp []byte

	// Cgroup is the container's cgroup, made and limited by package cgroupdriver, still empty. The native engine starts
	// the process in it. Nil with the oci engine: the runtime makes it from Spec.Linux.CgroupsPath and
	// Spec.Linux.Resources.
	Cgroup *Cgroup

	// FinishCgroup, where it is not nil, makes what is still missing of Cgroup: on a hybrid layout all but the Unified
	// directory, else everything. Create calls it once, on its own goroutine, while others make the container's
	// namespaces and mounts, and has no process in the cgroup before it has returned nil; its error is Create's. When
	// Create fails, the caller removes the cgroup, as far as there is any. Only the native engine takes it.
	FinishCgroup func(ctx context.Context) error

	// Stdin, Stdout and Stderr become fds 0, 1, 2. Nil means /dev/null. They must be nil with Spec.Process.Terminal.
	Stdin, Stdout, Stderr *os.File

	// Dir is an empty directory, private to this container, for the engine's own files (an OCI bundle, pid files).
	// The caller makes it and removes it after Delete.
	Dir string
}

// Cgroup names the directories of one cgroup in every mounted hierarchy.
type Cgroup struct {
	// Unified is the directory below the cgroup2 mount ("" where there is none).
	Unified string `json:"unified,omitempty"`
	// V1 maps a v1 hierarchy's name as in /proc/self/cgroup ("cpu", "memory", "name=systemd") to its directory.
	V1 map[string]string `json:"v1,omitempty"`
	// Shared names those hierarchies of V1 whose directory is not this cgroup's own but the one above it, with other processes in
	// it and other containers' cgroups below. The container's first process joins it, and that is all that may ever be done
	// by that name: see Own. A container that has such ones takes no further processes.
	Shared []string `json:"shared,omitempty"`
}

// Own is c without what it shares: what may be killed, frozen, limited, read and removed as the container's.
func (c *Cgroup) Own() *Cgroup {
	if c == nil || len(c.Shared) == 0 {
		return c
	}
	own := &Cgroup{Unified: c.Unified, V1: make(map[string]string, len(c.V1))}
	for name, dir := range c.V1 {
		if !slices.Contains(c.Shared, name) {
			own.V1[name] = dir
		}
	}
	return own
}

// Container is a created container. Methods are safe for concurrent use.
type Container interface {
	// Process is the container's first process (pid 1 of its pid namespace, unless that is shared).
	Process() Process

	// Start lets the created process run its program. The error of execve comes back here: errdefs.ErrNotFound for
	// a missing program, errdefs.ErrPermissionDenied for one that can't be executed, with the step that failed.
	// After a failed Start the process is dead.
	Start(ctx context.Context) error

	// Exec runs a further process inside the container and returns once its program runs.
	Exec(ctx context.Context, p *ExecConfig) (Process, error)

	// Kill ends every process of the container with SIGKILL (cgroup.kill, else freezer and a loop) and returns when
	// the signals are sent. It is no error if none is left.
	Kill(ctx context.Context) error

	// Delete releases what Create made. All processes must be gone. The cgroup given in Config stays.
	// Idempotent.
	Delete(ctx context.Context) error

	// Save describes the container for Adopt. It must not run at the same time as Start, Exec or Delete.
	Save() (*Saved, error)
}

// ExecConfig is one exec session.
type ExecConfig struct {
	// Process is used as in an OCI spec: args, env, cwd, user, capabilities, noNewPrivileges, rlimits, apparmorProfile,
	// selinuxLabel, oomScoreAdj, terminal, consoleSize.
	Process *specs.Process
	// Seccomp is the compiled filter, as in Config; nil for none.
	Seccomp []byte
	// Cgroup is a cgroup below the container's one, made for this session so that its whole process tree can be
	// killed; nil: the container's own cgroup. Only the native engine uses it.
	Cgroup *Cgroup
	// Stdin, Stdout, Stderr: as in Config.
	Stdin, Stdout, Stderr *os.File
}

// Process is a running process of a container.
type Process interface {
	// Pid in the engine's own pid namespace.
	Pid() int
	// Child tells how the process ended; the engine's process is its parent or subreaper.
	Child() *reaper.Child
	// Signal sends sig through the process's pidfd, so that it can never reach another process.
	// errdefs.ErrNotFound when the process has ended.
	Signal(sig unix.Signal) error
	// Terminal is the pty master with Process.Terminal, else nil. The caller closes it.
	Terminal() *os.File
}
