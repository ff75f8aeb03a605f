package sandbox

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/pkg/clock"
	"github.com/seed-9a14075a/cri-server/pkg/faultpoint"
	"github.com/seed-9a14075a/cri-server/pkg/network"
	"github.com/seed-9a14075a/cri-server/pkg/network/netns"
	"github.com/seed-9a14075a/cri-server/pkg/objectid"
	"github.com/seed-9a14075a/cri-server/pkg/operation"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/monitor"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/spec"
)

// runTimeout bounds a whole RunPodSandbox, whoever waits for it: kubelet waits 4 minutes (2T).
const runTimeout = 4 * time.Minute

// Run makes a pod sandbox and returns it ready. It is one operation per pod (Key): a caller that comes while it runs
// joins it, and one that comes after it succeeded gets the same sandbox again, as long as it asks for the same thing.
// The operation goes on when its callers leave.
func (s *Sandboxes) Run(ctx context.Context, config *runtimeapi.PodSandboxConfig, handlerName string) (*Sandbox, error) {
	if _, err := s.cfg.Handlers.Resolve(handlerName); err != nil {
		return nil, err
	}
	key := Key(config.GetMetadata())
	sb, err := operation.Do(ctx, s.ops, "run "+key, runTimeout, func(ctx context.Context, op *operation.Op) (*Sandbox, error) {
		if sb, err := s.existing(ctx, key, config, handlerName); sb != nil || err != nil {
			return sb, err
		}
		return s.run(ctx, op, config, handlerName)
	})
	if err == nil && !sb.is(config, handlerName) { // joined an operation that was begun with another
		return nil, differs(sb, key)
	}
	return sb, err
}

func (s *Sandbox) is(config *runtimeapi.PodSandboxConfig, handlerName string) bool {
	return s.Handler == handlerName && proto.Equal(s.Config, config)
}

func differs(sb *Sandbox, key string) error {
	return fmt.Errorf("sandbox %s of pod %s has another configuration: %w", sb.ID, key, errdefs.ErrAlreadyExists)
}

// existing answers a retry: the pod's sandbox if it is there, ready and the same.
func (s *Sandboxes) existing(ctx context.Context, key string, config *runtimeapi.PodSandboxConfig, handlerName string) (*Sandbox, error) {
	s.mu.RLock()
	sb := s.byID[s.byKey[key]]
	s.mu.RUnlock()
	switch {
	case sb == nil:
		return nil, nil
	case sb.Leftover:
		if err := s.Remove(ctx, sb.ID); err != nil {
			return nil, fmt.Errorf("an earlier try is still to be taken down: %w", err)
		}
		return nil, nil
	case sb.State != Ready:
		return nil, fmt.Errorf("sandbox %s of pod %s is there and stopped; remove it, or raise the attempt: %w", sb.ID, key, errdefs.ErrAlreadyExists)
	case !sb.is(config, handlerName):
		return nil, differs(sb, key)
	}
	return sb, nil
}

// createdAt is now, and after the other sandboxes of the pod: kubelet goes by the newest.
func (s *Sandboxes) createdAt(uid string) time.Time {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var others []time.Time
	for _, sb := range s.byID {
		if sb.Config.GetMetadata().GetUid() == uid {
			others = append(others, sb.CreatedAt)
		}
	}
	return clock.After(time.Now(), others...)
}

func (s *Sandboxes) run(ctx context.Context, op *operation.Op, config *runtimeapi.PodSandboxConfig, handlerName string) (*Sandbox, error) {
	id := objectid.New()
	sb := &Sandbox{ID: id, Config: config, Handler: handlerName, State: Creating, CreatedAt: s.createdAt(config.GetMetadata().GetUid()),
		Overhead: config.GetLinux().GetOverhead(), Resources: config.GetLinux().GetResources()}

	op.Stage("cgroup path")
	sb.CgroupParent = config.GetLinux().GetCgroupParent()
	path, err := s.cfg.Cgroups.Path(sb.CgroupParent, id)
	if err != nil {
		return nil, err
	}
	sb.CgroupPath = path
	sb.Files.Dir = s.dir(id)
	if !sb.HostNetwork() {
		sb.NetNS = filepath.Join(s.cfg.NetnsDir, network.Prefix+id)
	}

	op.Stage("record")
	if err := faultpoint.Hit("sandbox.run.record"); err != nil {
		return nil, err
	}
	if err := s.save(sb); err != nil {
		return nil, err
	}
	s.set(sb)
	op.Undo("sandbox "+id, func(ctx context.Context) error { return s.discard(ctx, sb) })
	if err := faultpoint.Hit("sandbox.run.recorded"); err != nil {
		return nil, err
	}

	next := *sb
	if err := s.raise(ctx, op, &next); err != nil {
		return nil, err
	}

	if err := faultpoint.Hit("sandbox.run.raised"); err != nil {
		return nil, err
	}
	op.Stage("publish")
	next.State = Ready
	next.Timeline = op.Timeline()
	next.Timeline.Running = false // what follows is telling others
	if err := s.publish(&next); err != nil {
		return nil, err
	}
	faultpoint.Pass("sandbox.run.published")
	return &next, nil
}

// publish records and shows a finished sandbox; what happens to it from now on comes after.
func (s *Sandboxes) publish(sb *Sandbox) error {
	unlock, err := s.edits.Lock(context.Background(), sb.ID)
	if err != nil {
		return err
	}
	defer unlock()
	if err := s.save(sb); err != nil {
		return err
	}
	s.set(sb)
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.died[sb.ID] { // whoever looks for it later finds a finished sandbox
		return fmt.Errorf("pause was killed meanwhile: %w", errdefs.ErrAborted)
	}
	return nil
}

// raise brings up files, network namespace, network and pause, as far as they allow at the same time.
func (s *Sandboxes) raise(ctx context.Context, op *operation.Op, sb *Sandbox) error {
	if sb.HostNetwork() || sb.UserNamespace() {
		op.Stage("files")
		if err := s.files(sb); err != nil {
			return err
		}
		// The user namespace comes into being with pause and must own the network namespace (user_namespaces(7)).
		op.Stage("pause")
		if err := s.startPause(ctx, sb, nil); err != nil || sb.HostNetwork() {
			return err
		}
		op.Stage("netns")
		if _, err := netns.PinPID(s.cfg.NetnsDir, network.Prefix+sb.ID, sb.Pid); err != nil {
			return err
		}
		op.Stage("network")
		return s.attach(ctx, sb)
	}
	op.Stage("files, network and pause")
	defer s.netns.Begin()()
	g, ctx := errgroup.WithContext(ctx) // one that has failed does not wait for the other
	connected, pinned := *sb, make(chan struct{})
	g.Go(func() error { // while the namespace is made, pause's cgroup is
		operation.GrowStack()
		return s.startPause(ctx, sb, pinned)
	})
	g.Go(func() error {
		operation.GrowStack()
		return s.connect(ctx, &connected, pinned)
	})
	err := g.Wait()
	sb.Files, sb.Network = connected.Files, connected.Network
	return err
}

// connect makes the network namespace, and then the pod's files and network. It closes pinned once the namespace is there.
func (s *Sandboxes) connect(ctx context.Context, sb *Sandbox, pinned chan<- struct{}) error {
	op := operation.FromContext(ctx)
	end := op.Part("netns")
	if _, err := s.netns.Create(s.cfg.NetnsDir, network.Prefix+sb.ID); err != nil {
		return err
	}
	if err := faultpoint.Hit("sandbox.run.netns"); err != nil {
		return err
	}
	close(pinned)
	end()
	end = op.Part("files")
	if err := s.files(sb); err != nil {
		return err
	}
	end()
	defer op.Part("network")()
	return s.attach(ctx, sb)
}

func (s *Sandboxes) files(sb *Sandbox) (err error) {
	if sb.Files, err = s.makeFiles(sb.Files.Dir, sb.Config); err != nil {
		return fmt.Errorf("files: %w", err)
	}
	return faultpoint.Hit("sandbox.run.files")
}

func (s *Sandboxes) attach(ctx context.Context, sb *Sandbox) error {
	err := faultpoint.Hit("sandbox.run.attach")
	if err != nil {
		return fmt.Errorf("network: %w", err)
	}
	sb.Network, err = s.cfg.Network.Attach(ctx, s.pod(sb))
	netns.DropSocket(sb.NetNS) // plugins that are programs, and those that have IPv6 to configure, do without
	if err != nil {
		return fmt.Errorf("network: %w", err)
	}
	return faultpoint.Hit("sandbox.run.attached")
}

func (s *Sandboxes) pod(sb *Sandbox) network.Pod {
	m, dns := sb.Config.GetMetadata(), sb.Config.GetDnsConfig()
	p := network.Pod{
		ID: sb.ID, Namespace: m.GetNamespace(), Name: m.GetName(), UID: m.GetUid(), NetNS: sb.NetNS,
		Annotations: sb.Config.GetAnnotations(), CgroupParent: sb.CgroupParent,
		DNS: network.DNS{Servers: dns.GetServers(), Searches: dns.GetSearches(), Options: dns.GetOptions()},
	}
	for _, pm := range sb.Config.GetPortMappings() {
		if pm.GetHostPort() == 0 {
			continue
		}
		p.PortMappings = append(p.PortMappings, network.PortMapping{
			Protocol: protocol(pm.GetProtocol()), ContainerPort: pm.GetContainerPort(), HostPort: pm.GetHostPort(), HostIP: pm.GetHostIp(),
		})
	}
	return p
}

func protocol(p runtimeapi.Protocol) string {
	switch p {
	case runtimeapi.Protocol_UDP:
		return "udp"
	case runtimeapi.Protocol_SCTP:
		return "sctp"
	default:
		return "tcp"
	}
}

// startPause makes pause's cgroup, waits until the network namespace is pinned, and starts pause. pinned may be nil.
func (s *Sandboxes) startPause(ctx context.Context, sb *Sandbox, pinned <-chan struct{}) error {
	h, err := s.cfg.Handlers.Resolve(sb.Handler)
	if err != nil {
		return err
	}
	sp, err := spec.Sandbox(&spec.SandboxInput{
		ID: sb.ID, Host: s.cfg.Host, Pod: sb.Config, NetNS: s.joinedNetNS(sb), CgroupPath: sb.CgroupPath,
	})
	if err != nil {
		return fmt.Errorf("pause: %w", err)
	}
	op := operation.FromContext(ctx)
	end := op.Part("pause: cgroup")
	req := &monitor.CreateRequest{ID: sb.ID, Spec: sp, Rootfs: s.cfg.Pause}
	place := h.Place
	if sb.CgroupParent != "" { // the pod's own, which counts and limits pause
		place = h.PlaceIdle
	}
	if err := place(ctx, s.cfg.Cgroups, sb.CgroupPath, req); err != nil {
		return fmt.Errorf("pause: cgroup: %w", err)
	}
	defer s.cfg.Cgroups.Settle(sb.CgroupPath, 0) // how pause ends does not matter
	if err := faultpoint.Hit("sandbox.run.cgroup"); err != nil {
		return err
	}
	end()
	if h.OCI == nil { // an OCI runtime compiles for itself
		if sp.Linux.Seccomp != nil {
			if req.Seccomp, err = s.cfg.Seccomp(sp.Linux.Seccomp); err != nil {
				return fmt.Errorf("pause: seccomp: %w", err)
			}
		}
	}
	end = op.Part("pause: wait")
	if err := awaitPinned(ctx, pinned, req); err != nil {
		return err
	}
	end()
	end = op.Part("pause: create and start")
	st, err := s.launch(ctx, req)
	if err != nil {
		return fmt.Errorf("pause: %w", err)
	}
	end()
	sb.Pid = st.Pid
	return faultpoint.Hit("sandbox.run.started")
}

// launch creates and starts pause, in one call where cri-monitor can do that.
func (s *Sandboxes) launch(ctx context.Context, req *monitor.CreateRequest) (monitor.State, error) {
	req.Start = true
	// To its end, whoever leaves: a request that was given up may still be on its way when Delete comes to take it back.
	st, err := s.cfg.Monitor.Create(context.WithoutCancel(ctx), req)
	if err != nil {
		return st, fmt.Errorf("create: %w", err)
	}
	if err := faultpoint.Hit("sandbox.run.created"); err != nil {
		return st, err
	}
	if st.StartError != "" {
		return st, fmt.Errorf("start: %s: %w", st.StartError, errdefs.ErrFailedPrecondition)
	}
	if st.Status != monitor.Running { // an older cri-monitor, or one that died half way
		if st, err = s.cfg.Monitor.Start(ctx, req.ID); err != nil {
			return st, fmt.Errorf("start: %w", err)
		}
	}
	return st, nil
}

// awaitPinned waits for the network namespace. While there is none, pause's cgroup can as well be made to its end.
func awaitPinned(ctx context.Context, pinned <-chan struct{}, req *monitor.CreateRequest) error {
	if pinned == nil {
		return nil
	}
	select {
	case <-pinned:
		return nil
	default:
	}
	if req.FinishCgroup != nil {
		if err := req.FinishCgroup(ctx); err != nil {
			return fmt.Errorf("pause: cgroup: %w", err)
		}
		req.FinishCgroup = nil
	}
	select {
	case <-pinned:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// joinedNetNS is the namespace that pause joins; "" where it makes its own or uses the host's.
func (s *Sandboxes) joinedNetNS(sb *Sandbox) string {
	if sb.UserNamespace() {
		return ""
	}
	return sb.NetNS
}

func (s *Sandboxes) dir(id string) string { return filepath.Join(s.cfg.StateDir, "sandboxes", id) }
