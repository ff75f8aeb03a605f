// Package sandbox runs pod sandboxes: the pause container that holds a pod's namespaces, its cgroup, its files
// (hostname, hosts, resolv.conf, /dev/shm) and its network attachment.
//
// On disk it owns one record per sandbox and the directory of the pod's files; in the kernel the pinned network
// namespace, the tmpfs on the pod's shm directory, pause's cgroup and, by way of cri-monitor, pause itself. All of it
// survives cri-server. A record is written before anything is made, so that Recover can take down what was half made.
//
// Reads answer from memory: a Sandbox is an immutable picture, replaced as a whole when something changes.
package sandbox

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
	"github.com/seed-9a14075a/cri-server/pkg/network"
	"github.com/seed-9a14075a/cri-server/pkg/network/netns"
	"github.com/seed-9a14075a/cri-server/pkg/operation"
	"github.com/seed-9a14075a/cri-server/pkg/records"
	"github.com/seed-9a14075a/cri-server/pkg/rootfs"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/handler"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/monitor"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/spec"
)

// State is a sandbox's place in its life.
type State string

// A sandbox is recorded as creating, becomes ready when its network and pause are up, and not ready for good when
// pause has ended or StopPodSandbox was called.
const (
	Creating State = "creating"
	Ready    State = "ready"
	NotReady State = "notready"
)

// Sandbox is one pod sandbox at some moment. It is never modified once it is handed out.
type Sandbox struct {
	ID      string
	Config  *runtimeapi.PodSandboxConfig
	Handler string
	State   State
	// Stopping is set once the sandbox was asked to stop; Released when nothing of it is left in the kernel.
	Stopping, Released bool
	// Leftover is set when RunPodSandbox failed and what it had made could not be taken down. It is not recorded: the
	// record still says creating.
	Leftover  bool
	CreatedAt time.Time
	// Pid of pause, 0 when it has ended.
	Pid int
	// NetNS is the pinned network namespace, "" with the host's network.
	NetNS   string
	Network *network.Result
	// CgroupPath is pause's cgroup; CgroupParent what the pod's containers are put under.
	CgroupPath, CgroupParent string
	Files                    Files
	// Overhead and Resources are those of the pod as a whole, with later updates; nil if kubelet did not tell.
	Overhead, Resources *runtimeapi.LinuxContainerResources
	Timeline            operation.Timeline
	// Broken says why the record could not be read; such a sandbox is listed, stopped and removed, nothing else.
	Broken string
}

// Key is the name by which operations on the same pod sandbox find each other.
func Key(m *runtimeapi.PodSandboxMetadata) string {
	return fmt.Sprintf("%s/%s/%s/%d", m.GetNamespace(), m.GetName(), m.GetUid(), m.GetAttempt())
}

// HostNetwork tells whether the pod uses the node's network namespace.
func (s *Sandbox) HostNetwork() bool {
	return namespaceOptions(s.Config).GetNetwork() == runtimeapi.NamespaceMode_NODE
}

// UserNamespace tells whether the pod has a user namespace of its own.
func (s *Sandbox) UserNamespace() bool { return ownUserNamespace(s.Config) }

func namespaceOptions(c *runtimeapi.PodSandboxConfig) *runtimeapi.NamespaceOption {
	return c.GetLinux().GetSecurityContext().GetNamespaceOptions()
}

func ownUserNamespace(c *runtimeapi.PodSandboxConfig) bool {
	u := namespaceOptions(c).GetUsernsOptions()
	return u != nil && u.GetMode() == runtimeapi.NamespaceMode_POD
}

// Monitor is what a sandbox needs of cri-monitor.
type Monitor interface {
	Create(ctx context.Context, req *monitor.CreateRequest) (monitor.State, error)
	Start(ctx context.Context, id string) (monitor.State, error)
	Signal(ctx context.Context, id string, sig unix.Signal) error
	Delete(ctx context.Context, id string) error
}

// Config is what Sandboxes works with.
type Config struct {
	// RecordsDir keeps the records and survives a reboot; StateDir keeps the pods' files and may not.
	RecordsDir, StateDir string
	NetnsDir             string
	Monitor              Monitor
	Cgroups              cgroupdriver.Driver
	Network              network.Network
	Handlers             *handler.Table
	Host                 *spec.Host
	// Seccomp compiles a profile to a filter; it may be asked for the same profile again and again.
	Seccomp func(*specs.LinuxSeccomp) ([]byte, error)
	// Pause is the root file system that holds /pause.
	Pause rootfs.Rootfs
	// ShmSize in bytes of a pod's /dev/shm; 0 means 64 MiB.
	ShmSize int64
	// Changed, if set, is told of every change of a picture once it can be seen: old is nil for a new sandbox, now for one
	// that is gone. Changes of one sandbox are told one after the other, in order. It must not call back to change.
	Changed func(old, now *Sandbox)
	Log     *slog.Logger
}

// Sandboxes is the set of pod sandboxes of this node. It is safe for concurrent use.
type Sandboxes struct {
	cfg     Config
	records *records.Store[record]
	ops     *operation.Group
	netns   *netns.Pool
	locks   operation.Locks // one operation at a time that changes what a sandbox is
	edits   operation.Locks // one change of a picture at a time

	mu    sync.RWMutex
	byID  map[string]*Sandbox
	byKey map[string]string // Key → id, of sandboxes that have a readable record
	died  map[string]bool   // sandboxes whose pause ended while they were being created
}

// Get finds a sandbox by its id or an unambiguous prefix of it. ErrNotFound, also while it is still being created: its
// id is nobody's to name yet.
func (s *Sandboxes) Get(id string) (*Sandbox, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if sb := s.byID[id]; sb != nil && sb.State != Creating {
		return sb, nil
	}
	var found *Sandbox
	for full, sb := range s.byID {
		if id != "" && sb.State != Creating && strings.HasPrefix(full, id) {
			if found != nil {
				return nil, fmt.Errorf("sandbox id %q is ambiguous: %w", id, errdefs.ErrInvalidArgument)
			}
			found = sb
		}
	}
	if found == nil {
		return nil, fmt.Errorf("sandbox %q: %w", id, errdefs.ErrNotFound)
	}
	return found, nil
}

// List returns all sandboxes that can be asked for by id, oldest first. One that is still being created is not among
// them: RunPodSandbox has not returned its id yet.
func (s *Sandboxes) List() []*Sandbox {
	s.mu.RLock()
	list := make([]*Sandbox, 0, len(s.byID))
	for _, sb := range s.byID {
		if sb.State != Creating {
			list = append(list, sb)
		}
	}
	s.mu.RUnlock()
	sort.Slice(list, func(i, j int) bool {
		if !list[i].CreatedAt.Equal(list[j].CreatedAt) {
			return list[i].CreatedAt.Before(list[j].CreatedAt)
		}
		return list[i].ID < list[j].ID
	})
	return list
}

// set replaces the picture of a sandbox. The caller holds its edits lock, or is alone with it.
func (s *Sandboxes) set(sb *Sandbox) {
	s.mu.Lock()
	old := s.byID[sb.ID]
	s.byID[sb.ID] = sb
	if sb.Config.GetMetadata() != nil {
		s.byKey[Key(sb.Config.Metadata)] = sb.ID
	}
	if sb.State == NotReady && sb.Config.GetMetadata() != nil {
		s.ops.Forget("run " + Key(sb.Config.Metadata)) // a retry must not be told that it is ready
	}
	s.mu.Unlock()
	if s.cfg.Changed != nil {
		s.cfg.Changed(old, sb)
	}
}

func (s *Sandboxes) drop(sb *Sandbox) {
	s.mu.Lock()
	old := s.byID[sb.ID]
	delete(s.byID, sb.ID)
	delete(s.died, sb.ID)
	if m := sb.Config.GetMetadata(); m != nil {
		s.ops.Forget("run " + Key(m))
	}
	if m := sb.Config.GetMetadata(); m != nil && s.byKey[Key(m)] == sb.ID {
		delete(s.byKey, Key(m))
	}
	s.mu.Unlock()
	if s.cfg.Changed != nil && old != nil {
		s.cfg.Changed(old, nil)
	}
}

// change records and shows a changed copy of the sandbox; f must not keep it. A change that leads down must not wait for
// room on a full disk, so it is shown even if it can't be recorded: the next start finds out anew, from the older record
// and what is there.
func (s *Sandboxes) change(id string, f func(*Sandbox)) (*Sandbox, error) {
	unlock, err := s.edits.Lock(context.Background(), id)
	if err != nil {
		return nil, err
	}
	defer unlock()
	s.mu.RLock()
	old := s.byID[id]
	s.mu.RUnlock()
	if old == nil {
		return nil, fmt.Errorf("sandbox %q: %w", id, errdefs.ErrNotFound)
	}
	next := *old
	f(&next)
	if err := s.save(&next); err != nil {
		if next.State != NotReady {
			return nil, err
		}
		s.cfg.Log.Error("the sandbox goes down without a record of it", "sandbox", id, "error", err)
	}
	s.set(&next)
	return &next, nil
}
