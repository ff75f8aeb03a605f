// Package monitor is both ends of the line between cri-server and cri-monitor: the protocol, the client that
// cri-server uses, and the server that is cri-monitor.
//
// cri-monitor is one process per node. It is parent and child subreaper of every pod process; it holds their stdio and
// ptys, writes the CRI log files, keeps exit codes until they are deleted, runs execs, and outlives cri-server. It
// knows nothing of Kubernetes: a container is an id, an OCI spec and a root file system.
//
// The line is a unix stream socket, root only. A frame is a fixed header (length, number of fds, kind, request id) and a
// JSON body; file descriptors ride on the header by SCM_RIGHTS. A call that starts something long-lived (Exec,
// Attach, Events) has a connection of its own, and closing it ends that thing. The protocol has a version; unknown
// JSON fields are ignored, so that either side may be newer.
//
// cri-monitor may be replaced and may die:
//
//   - An upgrade (Upgrade) freezes it at a point where nothing is half done, puts all that it knows into a memfd and
//     goes on in the new program by execve(2): same process, children, descriptors and connections. A program that does
//     not understand the state is found out before.
//   - When it is killed, its containers run on. Whoever keeps (Keep; systemd's descriptor store) has duplicates of all
//     pipes, terminals, log files and pidfds and a description of each container, and gives them to the next
//     cri-monitor, which the client starts; its calls wait meanwhile. Bytes that were taken from a container and
//     are not in its log yet are in the journal (package stdio), so that no byte is lost or doubled. Exit codes come from
//     the pidfds. What ends is sessions and attachments, with ErrUnavailable; a start that was cut short fails with it.
//   - What is lost then: records that waited in memory because the log's file system was full, and with an OCI runtime
//     exec sessions run on unseen until the container ends. Everything about the output is lost when those who keep
//     die at the same time: the containers' writers get EPIPE. A descriptor store prevents that.
package monitor

import (
	"context"
	"os"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/seed-9a14075a/cri-server/pkg/rootfs"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

// OCIRuntime selects the oci engine and says which binary it drives.
type OCIRuntime struct {
	Path string   `json:"path"`           // the runtime binary
	Root string   `json:"root"`           // its --root
	Args []string `json:"args,omitempty"` // further global arguments, such as --systemd-cgroup
}

// CreateRequest creates one container, in the state "created": built, its program not yet running; or, with Start, running.
type CreateRequest struct {
	ID      string         `json:"id"`
	Spec    *specs.Spec    `json:"spec"`
	Rootfs  rootfs.Rootfs  `json:"rootfs"`
	Seccomp []byte         `json:"seccomp,omitempty"` // compiled filter, see engine.Config
	Cgroup  *engine.Cgroup `json:"cgroup,omitempty"`  // nil with OCI
	OCI     *OCIRuntime    `json:"oci,omitempty"`     // nil: the native engine

	// Start lets its program run at once, for one that nobody has anything to do with before. The State tells: it is created
	// where cri-monitor does not know of it, and has a StartError where the program could not be executed.
	Start bool `json:"start,omitempty"`

	// FinishCgroup, where it is not nil, makes what is still missing of Cgroup, see engine.Config. Create of the client calls
	// it once, at the latest before cri-monitor puts a process there, unless it fails before; its error is Create's.
	FinishCgroup func(ctx context.Context) error `json:"-"`

	// Log is the CRI log file; empty LogPath means that output is read and thrown away. LogDir must exist; LogPath is
	// relative to it and is opened beneath it without following symlinks; missing directories are made.
	LogDir  string `json:"log_dir,omitempty"`
	LogPath string `json:"log_path,omitempty"`

	// Stdin keeps fd 0 open for attaches; StdinOnce closes it when the first attach that brought input ends.
	// Without Stdin fd 0 is /dev/null. A terminal is asked for by Spec.Process.Terminal.
	Stdin     bool `json:"stdin,omitempty"`
	StdinOnce bool `json:"stdin_once,omitempty"`

	// OOM names where to look whether the kernel killed for memory: nil means Cgroup. The oci engine needs it, since
	// the runtime makes the cgroup.
	OOM *engine.Cgroup `json:"oom,omitempty"`
}

// Status is a container's place in its life as the monitor sees it.
type Status string

// A container is created, then running, then stopped; a container whose create was cut short is stopped.
const (
	Created Status = "created"
	Running Status = "running"
	Stopped Status = "stopped"
)

// State is what the monitor knows of a container. It is kept until Delete.
type State struct {
	ID         string    `json:"id"`
	Status     Status    `json:"status"`
	Pid        int       `json:"pid"` // in the monitor's pid namespace; 0 when stopped
	CreatedAt  time.Time `json:"created_at"`
	StartedAt  time.Time `json:"started_at,omitzero"`
	FinishedAt time.Time `json:"finished_at,omitzero"`
	// ExitCode counts as a shell does: 128+n for signal n. Signal is that n, else 0.
	ExitCode int `json:"exit_code"`
	Signal   int `json:"signal,omitempty"`
	// ExitUnknown: the process ended while there was no cri-monitor, and the kernel (before Linux 6.15) does not tell
	// how. ExitCode is 255 then.
	ExitUnknown bool `json:"exit_unknown,omitempty"`
	// OOMKilled: the kernel killed a process of the container's cgroup for memory during its life.
	OOMKilled bool `json:"oom_killed,omitempty"`
	// StartError is set when the program could not be executed.
	StartError string `json:"start_error,omitempty"`
	TTY        bool   `json:"tty,omitempty"`
}

// Event tells of a change of one container; State is the whole state after it. Seq grows by one with every event of
// this monitor, so that a subscriber to all types can see that it has missed none.
type Event struct {
	Seq   uint64 `json:"seq"`
	Type  string `json:"type"` // created, started, stopped, deleted
	State State  `json:"state"`
}

// ExecRequest runs a process in a running container. Stdin, Stdout and Stderr are the child's own ends and travel as
// fds; nil means /dev/null. With Process.Terminal they must be nil and the reply carries the pty master.
type ExecRequest struct {
	ID                    string         `json:"id"`
	Process               *specs.Process `json:"process"`
	Seccomp               []byte         `json:"seccomp,omitempty"`
	Stdin, Stdout, Stderr *os.File       `json:"-"`
	// Brief: the program is expected to end soon, and Exec may wait for that, some milliseconds at most.
	Brief bool `json:"brief,omitempty"`
	// Own: Seccomp, and what lean leaves out of Process, are the container's own, so that they need not be sent. For containers
	// of the native engine.
	Own bool `json:"own,omitempty"`
}

// AttachRequest connects to a running container's stdio. Stdin is read by the monitor; Stdout and Stderr are written by
// it (pipes or sockets; the monitor makes them non-blocking and drops an attachment that doesn't keep up with more
// than 4 MiB waiting, so that a slow client never holds up the container or its log).
type AttachRequest struct {
	ID                    string   `json:"id"`
	Stdin, Stdout, Stderr *os.File `json:"-"`
}

// The client (client.go) has these methods; all are safe for concurrent use and fail with errdefs kinds:
//
//	Dial(ctx, socket string) (*Client, error)
//	(*Client) Close() error
//	(*Client) Version(ctx) (Version, error)                 // protocol, build, pid, start time
//	(*Client) Create(ctx, *CreateRequest) (State, error)
//	(*Client) Start(ctx, id) (State, error)
//	(*Client) Signal(ctx, id, sig unix.Signal) error        // the container's init
//	(*Client) Kill(ctx, id) error                           // SIGKILL to all processes of the container
//	(*Client) Wait(ctx, id) (State, error)                  // returns when stopped and its log is written out
//	(*Client) Delete(ctx, id) error                         // kills what is left; idempotent
//	(*Client) State(ctx, id) (State, error)
//	(*Client) List(ctx) ([]State, error)
//	(*Client) ReopenLog(ctx, id) error
//	(*Client) Resize(ctx, id, width, height uint16) error
//	(*Client) Exec(ctx, *ExecRequest) (*Exec, error)        // Exec: Pid int, Terminal *os.File, Wait(ctx) (code int, err error), Kill(), Release(), Close()
//	(*Client) Attach(ctx, *AttachRequest) (*Attachment, error) // Attachment: Wait(ctx) error (container stopped or dropped), Close()
//	(*Client) Events(ctx, but ...string) (*Events, error)   // first Known events, one per container there is, then changes, of some types perhaps not; Events: Known int, Next(ctx) (Event, error), Close()
//	(*Client) Shutdown(ctx) error                           // refused with ErrFailedPrecondition while containers exist
//	(*Client) Keep(ctx, LaunchConfig, *slog.Logger) error   // from now on cri-monitor may die, see above
//	(*Client) Upgrade(ctx, path string) (Version, error)    // goes on in another program
//
// Exec and Attach give cri-monitor duplicates of their files: the caller closes its own. Close of an Exec kills the whole
// session, whether its process has ended or not, unless there was a Release: every process in its cgroup (native
// engine), or in its process tree (oci engine, where one that has detached itself escapes). What is left behind after a
// Release runs on until the container ends, as with containerd.
//
// and Launch(ctx, LaunchConfig) starts cri-monitor detached when no one listens.
