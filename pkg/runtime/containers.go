// Package runtime runs the containers of pod sandboxes: it creates, starts, stops, updates, measures and removes them,
// and runs programs in them.
//
// A container on disk is one record and one snapshot (its writable layer); in the kernel it is a cgroup and, by way of
// cri-monitor, processes with their namespaces, mounts and log. All of it survives cri-server. A record is written
// before anything is made, so that Recover can take down what was half made.
//
// Reads answer from memory: a Container is an immutable picture, replaced as a whole when something changes.
package runtime

import (
	"context"
	"fmt"
	"log/slog"
	"sort"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/pkg/cgroupdriver"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore"
	"github.com/seed-9a14075a/cri-server/pkg/operation"
	"github.com/seed-9a14075a/cri-server/pkg/records"
	"github.com/seed-9a14075a/cri-server/pkg/rootfs"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/handler"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/monitor"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/spec"
)

// State is a container's place in its life.
type State string

// The states of the CRI, and Creating before there is anything to be listed.
const (
	Creating State = "creating"
	Created  State = "created"
	Running  State = "running"
	Exited   State = "exited"
	Unknown  State = "unknown"
)

// Reasons of an exit, as kubelet and users know them.
const (
	ReasonCompleted  = "Completed"
	ReasonError      = "Error"
	ReasonOOMKilled  = "OOMKilled"
	ReasonStartError = "StartError"
	ReasonUnknown    = "Unknown"
)

// Exit codes where the process has none of its own; containerd uses the same.
const (
	codeStartError = 128
	codeUnknown    = 255
)

// Container is one container at some moment. It is never modified once it is handed out.
type Container struct {
	ID, SandboxID string
	Config        *runtimeapi.ContainerConfig
	Handler       string
	ImageID       string
	// LogPath is absolute; LogDir is the pod's part of it.
	LogDir, LogPath                  string
	State                            State
	CreatedAt, StartedAt, FinishedAt time.Time
	ExitCode                         int32
	Reason, Message                  string
	Pid                              int // 0 unless created or running
	CgroupPath                       string
	Rootfs                           rootfs.Rootfs
	StopSignal                       unix.Signal
	// Resources are those asked for, with later updates: what kubelet wants to see again.
	Resources *runtimeapi.LinuxContainerResources
	// Process is the container's process, the model for execs. Filter names its seccomp filter, "" for none.
	Process *specs.Process
	Filter  string
	// Timeline and StartTimeline are how creating and starting it went.
	Timeline, StartTimeline operation.Timeline
	// Broken says why the record could not be read; such a container is listed as unknown, stopped and removed.
	Broken string
	// Leftover is set when CreateContainer failed and what it had made could not be taken down. It is not recorded: the
	// record still says creating.
	Leftover bool
}

// Monitor is what containers need of cri-monitor.
type Monitor interface {
	Create(ctx context.Context, req *monitor.CreateRequest) (monitor.State, error)
	Start(ctx context.Context, id string) (monitor.State, error)
	Signal(ctx context.Context, id string, sig unix.Signal) error
	Kill(ctx context.Context, id string) error
	State(ctx context.Context, id string) (monitor.State, error)
	Delete(ctx context.Context, id string) error
	ReopenLog(ctx context.Context, id string) error
	Resize(ctx context.Context, id string, width, height uint16) error
	Exec(ctx context.Context, req *monitor.ExecRequest) (*monitor.Exec, error)
	Attach(ctx context.Context, req *monitor.AttachRequest) (*monitor.Attachment, error)
}

// Config is what Containers works with.
type Config struct {
	// RecordsDir keeps the records and survives a reboot; StateDir keeps compiled filters and may not.
	RecordsDir, StateDir string
	Monitor              Monitor
	Cgroups              cgroupdriver.Driver
	Images               imagestore.Store
	Handlers             *handler.Table
	Host                 *spec.Host
	// Seccomp compiles a profile to a filter; it may be asked for the same profile again and again.
	Seccomp func(*specs.LinuxSeccomp) ([]byte, error)
	// ExecOutputLimit is the largest stdout plus stderr of ExecSync in bytes; what is more is thrown away.
	ExecOutputLimit int64
	// Changed, if set, is told of every change of a picture once it can be seen: old is nil for a new container, now for one
	// that is gone. Changes of one container are told one after the other, in order. It must not call back to change.
	Changed func(old, now *Container)
	Log     *slog.Logger
}

// Containers is the set of containers of this node. It is safe for concurrent use.
type Containers struct {
	cfg      Config
	records  *records.Store[record]
	ops      *operation.Group
	locks    operation.Locks // one operation at a time that changes what a container is
	edits    operation.Locks // one change of a picture at a time
	releases operation.Locks // one taking down at a time
	filters  *filters
	rates    rates
	layers   layers
	// imageFiles are of images of which containers were made.
	imageFiles imageFiles
	reaping    sync.WaitGroup

	mu       sync.RWMutex
	byID     map[string]*Container
	byKey    map[string]string
	exited   map[string]chan struct{} // closed when the container has ended; made by who waits
	died     map[string]bool          // containers whose process ended while they were being created
	released map[string]bool          // those that have ended and of which nothing is left in the kernel
}

// Key is the name by which operations on the same container find each other.
func Key(sandboxID string, m *runtimeapi.ContainerMetadata) string {
	return fmt.Sprintf("%s/%s/%d", sandboxID, m.GetName(), m.GetAttempt())
}

// Get finds a container by its id or an unambiguous prefix of it. ErrNotFound, also while it is still being created: its
// id is nobody's to name yet.
func (c *Containers) Get(id string) (*Container, error) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if ctr := c.byID[id]; ctr != nil && ctr.State != Creating {
		return ctr, nil
	}
	var found *Container
	for full, ctr := range c.byID {
		if id != "" && ctr.State != Creating && strings.HasPrefix(full, id) {
			if found != nil {
				return nil, fmt.Errorf("container id %q is ambiguous: %w", id, errdefs.ErrInvalidArgument)
			}
			found = ctr
		}
	}
	if found == nil {
		return nil, fmt.Errorf("container %q: %w", id, errdefs.ErrNotFound)
	}
	return found, nil
}

// List returns all containers that can be asked for by id, oldest first.
func (c *Containers) List() []*Container {
	return c.list(func(ctr *Container) bool { return ctr.State != Creating })
}

// OfSandbox returns the containers of one sandbox, those being created as well.
func (c *Containers) OfSandbox(id string) []*Container {
	return c.list(func(ctr *Container) bool { return ctr.SandboxID == id })
}

func (c *Containers) list(want func(*Container) bool) []*Container {
	c.mu.RLock()
	list := make([]*Container, 0, len(c.byID))
	for _, ctr := range c.byID {
		if want(ctr) {
			list = append(list, ctr)
		}
	}
	c.mu.RUnlock()
	sort.Slice(list, func(i, j int) bool {
		if !list[i].CreatedAt.Equal(list[j].CreatedAt) {
			return list[i].CreatedAt.Before(list[j].CreatedAt)
		}
		return list[i].ID < list[j].ID
	})
	return list
}

// Known tells whether there is a container of that exact id.
func (c *Containers) Known(id string) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.byID[id] != nil
}

// set shows a picture. The caller holds the container's edits lock, or is alone with it.
func (c *Containers) set(ctr *Container) {
	c.mu.Lock()
	old := c.byID[ctr.ID]
	c.byID[ctr.ID] = ctr
	if m := ctr.Config.GetMetadata(); m != nil {
		c.byKey[Key(ctr.SandboxID, m)] = ctr.ID
	}
	if ctr.State == Exited || ctr.State == Unknown {
		c.settled(ctr.ID)
		if m := ctr.Config.GetMetadata(); m != nil {
			c.ops.Forget("create " + Key(ctr.SandboxID, m)) // a retry must not be told that it can be started
		}
	}
	c.mu.Unlock()
	if c.cfg.Changed != nil {
		c.cfg.Changed(old, ctr)
	}
}

func (c *Containers) drop(ctr *Container) {
	c.mu.Lock()
	old := c.byID[ctr.ID]
	delete(c.byID, ctr.ID)
	delete(c.died, ctr.ID)
	delete(c.released, ctr.ID)
	if m := ctr.Config.GetMetadata(); m != nil {
		c.ops.Forget("create " + Key(ctr.SandboxID, m))
	}
	if m := ctr.Config.GetMetadata(); m != nil && c.byKey[Key(ctr.SandboxID, m)] == ctr.ID {
		delete(c.byKey, Key(ctr.SandboxID, m))
	}
	c.settled(ctr.ID)
	c.mu.Unlock()
	if c.cfg.Changed != nil && old != nil {
		c.cfg.Changed(old, nil)
	}
}

// settled wakes those who wait for the container's end; mu is held.
func (c *Containers) settled(id string) {
	if ch := c.exited[id]; ch != nil {
		close(ch)
		delete(c.exited, id)
	}
}

// ended returns a channel that is closed once the container is exited, unknown or gone.
func (c *Containers) ended(id string) <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	ch := c.exited[id]
	if ch == nil {
		ch = make(chan struct{})
		c.exited[id] = ch
	}
	if ctr := c.byID[id]; ctr == nil || ctr.State == Exited || ctr.State == Unknown {
		c.settled(id)
	}
	return ch
}

// change records and shows a changed copy of the container; f must not keep it. If it can't be recorded nothing changes.
func (c *Containers) change(id string, f func(*Container)) (*Container, error) {
	return c.edit(id, f, true)
}

// note is change for what has happened already: it is shown even if it can't be recorded, on a full disk, say; then the
// container is returned with the error. cri-monitor knows it too, so the next start of the server learns of it again.
func (c *Containers) note(id string, f func(*Container)) (*Container, error) {
	return c.edit(id, f, false)
}

func (c *Containers) edit(id string, f func(*Container), strict bool) (*Container, error) {
	unlock, err := c.edits.Lock(context.Background(), id)
	if err != nil {
		return nil, err
	}
	defer unlock()
	c.mu.RLock()
	old := c.byID[id]
	c.mu.RUnlock()
	if old == nil {
		return nil, fmt.Errorf("container %q: %w", id, errdefs.ErrNotFound)
	}
	next := *old
	f(&next)
	next.order()
	err = c.save(&next)
	if err != nil && strict {
		return nil, err
	}
	c.set(&next)
	return &next, err
}
