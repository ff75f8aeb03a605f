package runtime

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/pkg/faultpoint"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore"
	"github.com/seed-9a14075a/cri-server/pkg/objectid"
	"github.com/seed-9a14075a/cri-server/pkg/operation"
	"github.com/seed-9a14075a/cri-server/pkg/rootfs"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/monitor"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/spec"
)

// createTimeout bounds a whole CreateContainer, whoever waits for it (kubelet: 2 minutes).
const createTimeout = 2 * time.Minute

// Pod is what a container needs to know of its sandbox, which must be ready.
type Pod struct {
	ID      string
	Config  *runtimeapi.PodSandboxConfig
	Handler string
	// Pid of pause, whose ipc, uts, pid and user namespaces the container may share.
	Pid                              int
	NetNS                            string // "" with the host's network
	CgroupParent                     string
	Hostname, Hosts, ResolvConf, Shm string // files on the host
	UserNamespace                    bool
	// Ready tells whether the sandbox is still ready.
	Ready func() bool
}

// Create makes a container in a ready sandbox; its program does not run yet. It is one operation per container (Key): a
// caller that comes while it runs joins it, and one that comes after it succeeded gets the same container again, as
// long as it asks for the same thing.
func (c *Containers) Create(ctx context.Context, pod *Pod, config *runtimeapi.ContainerConfig) (*Container, error) {
	key := Key(pod.ID, config.GetMetadata())
	ctr, err := operation.Do(ctx, c.ops, "create "+key, createTimeout, func(ctx context.Context, op *operation.Op) (*Container, error) {
		if ctr, err := c.existing(ctx, key, config); ctr != nil || err != nil {
			return ctr, err
		}
		ctr, err := c.create(ctx, op, pod, config)
		if err != nil && !pod.Ready() && !errdefs.IsFailedPrecondition(err) {
			err = fmt.Errorf("%w (%v)", errStopped(pod.ID), err) // whatever it is, that is why
		}
		return ctr, err
	})
	if err == nil && !proto.Equal(ctr.Config, config) { // joined an operation that was begun with another
		return nil, differs(ctr)
	}
	return ctr, err
}

func differs(ctr *Container) error {
	return fmt.Errorf("container %s of that name and attempt is there (%s); remove it, or raise the attempt: %w",
		ctr.ID, ctr.State, errdefs.ErrAlreadyExists)
}

// existing answers a retry: the container if it is there and the same.
func (c *Containers) existing(ctx context.Context, key string, config *runtimeapi.ContainerConfig) (*Container, error) {
	c.mu.RLock()
	ctr := c.byID[c.byKey[key]]
	c.mu.RUnlock()
	switch {
	case ctr == nil:
		return nil, nil
	case ctr.Leftover:
		if err := c.Remove(ctx, ctr.ID); err != nil {
			return nil, fmt.Errorf("an earlier try is still to be taken down: %w", err)
		}
		return nil, nil
	case ctr.State != Created || !proto.Equal(ctr.Config, config):
		return nil, differs(ctr)
	}
	return ctr, nil
}

func (c *Containers) create(ctx context.Context, op *operation.Op, pod *Pod, config *runtimeapi.ContainerConfig) (*Container, error) {
	op.Stage("image")
	image, err := c.cfg.Images.Get(config.GetImage().GetImage())
	if err != nil {
		return nil, fmt.Errorf("image %q: %w", config.GetImage().GetImage(), err)
	}
	ctr := &Container{
		ID: objectid.New(), SandboxID: pod.ID, Config: config, Handler: pod.Handler, ImageID: image.ID, State: Creating,
		CreatedAt: c.createdAt(pod, config), Resources: config.GetLinux().GetResources(), LogDir: pod.Config.GetLogDirectory(),
	}
	if ctr.StopSignal, err = stopSignal(config, image); err != nil {
		return nil, err
	}
	if config.GetLogPath() != "" && ctr.LogDir != "" {
		ctr.LogPath = filepath.Join(ctr.LogDir, config.GetLogPath())
	}
	if ctr.CgroupPath, err = c.cfg.Cgroups.Path(pod.CgroupParent, ctr.ID); err != nil {
		return nil, err
	}

	op.Stage("record")
	if err := faultpoint.Hit("container.create.record"); err != nil {
		return nil, err
	}
	if err := c.save(ctr); err != nil {
		return nil, err
	}
	c.set(ctr)
	op.Undo("container "+ctr.ID, func(ctx context.Context) error { return c.takeBack(ctx, ctr) })
	if err := faultpoint.Hit("container.create.recorded"); err != nil {
		return nil, err
	}
	if !pod.Ready() { // from here on, who stops the sandbox sees this one and ends it
		return nil, errStopped(pod.ID)
	}

	next := *ctr
	if err := c.prepare(ctx, op, pod, &next, image); err != nil {
		return nil, err
	}
	if err := faultpoint.Hit("container.create.built"); err != nil {
		return nil, err
	}
	op.Stage("publish")
	next.State = Created
	next.Timeline = op.Timeline()
	next.Timeline.Running = false // what follows is telling others
	if err := c.publish(&next); err != nil {
		return nil, err
	}
	faultpoint.Pass("container.create.published")
	// Whoever stops the sandbox first makes it not ready and then looks for its containers: either they see this one, or
	// it sees them.
	if !pod.Ready() {
		return nil, errStopped(pod.ID)
	}
	return &next, nil
}

// prepare makes the container's writable layer and its spec at the same time, and builds it.
func (c *Containers) prepare(ctx context.Context, op *operation.Op, pod *Pod, ctr *Container, image *imagestore.Image) error {
	op.Stage("snapshot and spec")
	var root rootfs.Rootfs
	made := make(chan error, 1)
	go func() {
		var err error
		if root, err = c.cfg.Images.Snapshot(ctx, ctr.ID, image.ID); err != nil {
			err = fmt.Errorf("snapshot: %w", err)
		}
		made <- err
	}()
	vols := c.volumes(ctx, pod, ctr)
	sp, targets, err := c.spec(pod, ctr, image, vols.mount)
	if serr := <-made; serr != nil {
		err = serr
	}
	if err == nil {
		err = faultpoint.Hit("container.create.snapshot")
	}
	if err == nil {
		ctr.Process, ctr.Rootfs = sp.Process, c.cfg.Images.MountTargets(root, targets)
		err = c.build(ctx, op, pod, ctr, sp)
	}
	if undo := vols.release(); undo != nil {
		c.cfg.Log.Warn("mounts of image volumes are left until the next start", "container", ctr.ID, "error", undo)
	}
	return err
}

// publish records and shows a finished container; what happens to it from now on comes after.
func (c *Containers) publish(ctr *Container) error {
	unlock, err := c.edits.Lock(context.Background(), ctr.ID)
	if err != nil {
		return err
	}
	defer unlock()
	if err := c.save(ctr); err != nil {
		return err
	}
	c.set(ctr)
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.died[ctr.ID] { // whoever looks for it later finds a finished container
		return fmt.Errorf("its process was killed meanwhile: %w", errdefs.ErrAborted)
	}
	return nil
}

// build makes the cgroup and lets cri-monitor make the container.
func (c *Containers) build(ctx context.Context, op *operation.Op, pod *Pod, ctr *Container, sp *specs.Spec) error {
	h, err := c.cfg.Handlers.Resolve(pod.Handler)
	if err != nil {
		return err
	}
	req := &monitor.CreateRequest{
		ID: ctr.ID, Spec: sp, Rootfs: ctr.Rootfs, Stdin: ctr.Config.GetStdin(), StdinOnce: ctr.Config.GetStdinOnce(),
	}
	if ctr.LogPath != "" {
		// RunPodSandbox made it; it may have been cleaned away since.
		if err := os.MkdirAll(ctr.LogDir, 0o755); err != nil {
			return fmt.Errorf("log directory: %w", err)
		}
		req.LogDir, req.LogPath = ctr.LogDir, ctr.Config.GetLogPath()
	}
	if sp.Linux.Seccomp != nil {
		op.Stage("seccomp")
		if req.Seccomp, err = c.cfg.Seccomp(sp.Linux.Seccomp); err != nil {
			return fmt.Errorf("seccomp: %w", err)
		}
		if ctr.Filter, err = c.filters.put(req.Seccomp); err != nil {
			return err
		}
	}
	if err := faultpoint.Hit("container.create.filter"); err != nil {
		return err
	}
	op.Stage("cgroup")
	if err := h.Place(ctx, c.cfg.Cgroups, ctr.CgroupPath, req); err != nil {
		return fmt.Errorf("cgroup: %w", err)
	}
	if err := faultpoint.Hit("container.create.cgroup"); err != nil {
		return err
	}
	joined := 0
	defer func() { c.cfg.Cgroups.Settle(ctr.CgroupPath, joined) }()
	op.Stage("create")
	// To its end, whoever leaves: a request that was given up may still be on its way when Delete comes to take it back.
	st, err := c.cfg.Monitor.Create(context.WithoutCancel(ctx), req)
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	ctr.Pid, joined = st.Pid, st.Pid
	return faultpoint.Hit("container.create.created")
}

// imageMount shows the root of the image that a mount names, with an SELinux label, and returns where.
type imageMount = func(m *runtimeapi.Mount, label string) (string, error)

// spec makes the container's OCI spec, and lists the mount points that may be shared.
func (c *Containers) spec(pod *Pod, ctr *Container, image *imagestore.Image, volume imageMount) (*specs.Spec, []imagestore.Target, error) {
	files, err := c.imageFiles.of(c.cfg.Images, image.ID)
	if err != nil {
		return nil, nil, fmt.Errorf("image root: %w", err)
	}
	target, err := c.targetPid(pod, ctr.Config)
	if err != nil {
		return nil, nil, err
	}
	sp, err := spec.Container(&spec.Input{
		ID: ctr.ID, Host: c.cfg.Host, Pod: pod.Config, Container: ctr.Config, Image: &image.Config.Config, Files: files.read,
		Namespaces: namespaces(pod, target), CgroupPath: ctr.CgroupPath, SandboxID: pod.ID, ImageName: ctr.Config.GetImage().GetUserSpecifiedImage(),
		PrivilegedPod: pod.Config.GetLinux().GetSecurityContext().GetPrivileged(),
		Hostname:      pod.Hostname, Hosts: pod.Hosts, ResolvConf: pod.ResolvConf, Shm: pod.Shm,
		ImageMount: volume,
	})
	if err != nil {
		return nil, nil, err
	}
	return sp, mountTargets(sp, files.varRun), nil
}

// targetPid is the process whose pid namespace an ephemeral container shares (NamespaceMode_TARGET), else 0.
func (c *Containers) targetPid(pod *Pod, config *runtimeapi.ContainerConfig) (int, error) {
	o := config.GetLinux().GetSecurityContext().GetNamespaceOptions()
	if o.GetPid() != runtimeapi.NamespaceMode_TARGET {
		return 0, nil
	}
	target, err := c.Get(o.GetTargetId())
	if err != nil {
		return 0, fmt.Errorf("pid namespace target: %w", err)
	}
	if target.SandboxID != pod.ID {
		return 0, fmt.Errorf("pid namespace target %s is in another sandbox: %w", target.ID, errdefs.ErrInvalidArgument)
	}
	if target.State != Running {
		return 0, fmt.Errorf("pid namespace target %s is %s: %w", target.ID, target.State, errdefs.ErrFailedPrecondition)
	}
	return target.Pid, nil
}

// namespaces are the paths of the namespaces that the pod's containers can join.
func namespaces(pod *Pod, target int) spec.Namespaces {
	ns := func(pid int, name string) string { return fmt.Sprintf("/proc/%d/ns/%s", pid, name) }
	n := spec.Namespaces{Net: pod.NetNS, IPC: ns(pod.Pid, "ipc"), UTS: ns(pod.Pid, "uts"), PID: ns(pod.Pid, "pid")}
	if target != 0 {
		n.PID = ns(target, "pid")
	}
	if pod.UserNamespace {
		n.User = ns(pod.Pid, "user")
	}
	return n
}
