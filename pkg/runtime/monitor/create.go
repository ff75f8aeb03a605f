package monitor

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/faultpoint"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/logs"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/monitor/stdio"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/reaper"
)

// validID tells whether id is one: a lower-case letter or a digit, and up to 127 of them, '_', '.' and '-'.
func validID(id string) bool {
	for i := range len(id) {
		switch c := id[i]; {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9':
		case i > 0 && (c == '_' || c == '.' || c == '-'):
		default:
			return false
		}
	}
	return len(id) > 0 && len(id) <= 128
}

func (s *Server) create(ctx context.Context, req *CreateRequest) (State, error) {
	if err := req.check(); err != nil {
		return State{}, err
	}
	c, err := s.reserve(req.ID, req.describe())
	if err != nil {
		return State{}, err
	}
	defer c.unlock()
	s.trim.Reset(trimAfter)
	st, err := c.create(ctx, req)
	if err != nil {
		s.removeLater(c.dir)
		s.forget(c)
		return State{}, fmt.Errorf("create container %s: %w", req.ID, err)
	}
	if req.Start { // an error of it is not one of the create
		if _, err := c.run(ctx); err != nil {
			s.log.Debug("created, and not started", "container", req.ID, "err", err)
		}
		st = *c.state.Load()
	}
	return st, nil
}

func (r *CreateRequest) check() error {
	switch {
	case !validID(r.ID):
		return fmt.Errorf("container id %q: %w", r.ID, errdefs.ErrInvalidArgument)
	case r.Spec == nil || r.Spec.Process == nil || len(r.Spec.Process.Args) == 0:
		return fmt.Errorf("container %s: spec without a process: %w", r.ID, errdefs.ErrInvalidArgument)
	case r.LogPath != "" && !filepath.IsAbs(r.LogDir):
		return fmt.Errorf("container %s: log directory %q is not absolute: %w", r.ID, r.LogDir, errdefs.ErrInvalidArgument)
	}
	return nil
}

// describe is what the request says of the container, as it is saved.
func (r *CreateRequest) describe() *savedContainer {
	v := &savedContainer{Cgroup: r.Cgroup.Pack(), OOM: r.OOM.Pack(), OwnPids: ownPidNamespace(r.Spec), OCI: r.OCI}
	if r.Spec.Linux != nil {
		v.UIDs, v.GIDs = r.Spec.Linux.UIDMappings, r.Spec.Linux.GIDMappings
	}
	return v
}

// reserve puts a container under its id into the map, its op taken. It is not listed yet.
func (s *Server) reserve(id string, v *savedContainer) (*container, error) {
	c := &container{
		s: s, id: id, dir: filepath.Join(s.cfg.StateDir, "containers", id),
		cgroup: v.Cgroup, oom: v.OOM, oomKill: v.OOMKills, ownPids: v.OwnPids, oci: v.OCI, oomScoreAdj: v.OOMScoreAdj,
		uids: v.UIDs, gids: v.GIDs,
		op:      make(chan struct{}, 1),
		stopped: make(chan struct{}),
	}
	if c.oom == (engine.PackedCgroup{}) {
		c.oom = c.cgroup
	}
	c.op <- struct{}{}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closing:
		return nil, fmt.Errorf("cri-monitor is shutting down: %w", errdefs.ErrUnavailable)
	case s.containers[id] != nil:
		return nil, fmt.Errorf("container %s: %w", id, errdefs.ErrAlreadyExists)
	}
	s.containers[id] = c
	return c, nil
}

// forgetter is an engine that has a memory of its own, from which a create that the death of a cri-monitor has cut short
// must be taken before it can be done again.
type forgetter interface {
	Forget(ctx context.Context, id, dir string) error
}

func (s *Server) forget(c *container) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.containers, c.id)
}

// ownPidNamespace tells whether the container's init is pid 1 of a new pid namespace.
func ownPidNamespace(spec *specs.Spec) bool {
	if spec.Linux == nil {
		return false
	}
	for _, ns := range spec.Linux.Namespaces {
		if ns.Type == specs.PIDNamespace {
			return ns.Path == ""
		}
	}
	return false
}

func (c *container) create(ctx context.Context, req *CreateRequest) (State, error) {
	eng, err := c.s.cfg.Engine(req.OCI)
	if err != nil {
		return State{}, fmt.Errorf("engine: %w", err)
	}
	held, err := c.s.joined(req.Spec)
	if err != nil {
		return State{}, err
	}
	if err := os.Mkdir(c.dir, 0o700); os.IsExist(err) { // of a former cri-monitor
		if err := removeDir(c.dir); err != nil {
			return State{}, fmt.Errorf("old directory: %w", err)
		}
		if err := os.Mkdir(c.dir, 0o700); err != nil {
			return State{}, err
		}
	} else if err != nil {
		return State{}, err
	}
	var log *logs.File
	if req.LogPath != "" {
		if log, err = logs.Open(req.LogDir, req.LogPath); err != nil {
			return State{}, err
		}
	}
	pipes, err := newPipes(req)
	if err != nil {
		if log != nil {
			_ = log.Close()
		}
		return State{}, err
	}
	for _, f := range pipes.theirs {
		c.giveTo(f, req.Spec.Process.User)
	}
	if req.Spec.Process.OOMScoreAdj == nil { // else it would inherit cri-monitor's, which is next to unkillable
		req.Spec.Process.OOMScoreAdj = &c.s.oomScoreAdj
	}
	c.oomScoreAdj = req.Spec.Process.OOMScoreAdj
	config := &engine.Config{
		ID: req.ID, Spec: req.Spec, Rootfs: req.Rootfs, Seccomp: req.Seccomp, Cgroup: req.Cgroup, Dir: c.dir, FinishCgroup: req.FinishCgroup,
		Stdin: pipes.theirs[0], Stdout: pipes.theirs[1], Stderr: pipes.theirs[2],
	}
	if err := faultpoint.Hit("monitor.create.engine"); err != nil {
		pipes.closeTheirs()
		pipes.closeOurs()
		if log != nil {
			_ = log.Close()
		}
		return State{}, err
	}
	ctr, err := eng.Create(ctx, config)
	if f, ok := eng.(forgetter); ok && errdefs.IsAlreadyExists(err) {
		if err = f.Forget(ctx, req.ID, c.dir); err == nil {
			ctr, err = eng.Create(ctx, config)
		}
	}
	pipes.closeTheirs()
	if err != nil {
		pipes.closeOurs()
		if log != nil {
			_ = log.Close()
		}
		return State{}, err
	}
	return c.created(ctx, req, ctr, pipes, log, unreaped(held))
}

// created takes over what the engine has made, or, with err, takes it down.
func (c *container) created(ctx context.Context, req *CreateRequest, ctr engine.Container, pipes *pipes, log *logs.File, err error) (State, error) {
	c.ctr = ctr
	c.execs.learn(req.Seccomp)
	cfg := stdio.Config{
		ID: c.id, Stdin: pipes.ours[0], Stdout: pipes.ours[1], Stderr: pipes.ours[2], Terminal: -1,
		StdinOnce: req.StdinOnce, TerminalInput: req.Stdin, Log: log, InputClosed: c.inputClosed,
	}
	proc := ctr.Process()
	if t := proc.Terminal(); t != nil {
		// A descriptor of our own, which Go's poller knows nothing of.
		if err == nil {
			cfg.Terminal, err = unix.FcntlInt(t.Fd(), unix.F_DUPFD_CLOEXEC, 3)
		}
		t.Close()
	}
	if err == nil {
		c.streams, err = c.s.loops.Add(cfg)
	} else {
		pipes.closeOurs()
		if log != nil {
			_ = log.Close()
		}
	}
	if err != nil {
		_ = ctr.Kill(ctx)
		_, _ = proc.Child().Wait(ctx)
		_ = ctr.Delete(ctx)
		return State{}, err
	}
	c.oomKill, _ = c.oomKills()
	st := State{
		ID: c.id, Status: Created, Pid: proc.Pid(), CreatedAt: time.Now(), TTY: req.Spec.Process.Terminal,
	}
	c.s.events.publish("created", st, func() { c.state.Store(&st) })
	faultpoint.Pass("monitor.create.made")
	c.keep() // before the end is known, so that no older picture can come behind a newer one
	c.awaitEnd()
	faultpoint.Pass("monitor.create.kept")
	return st, nil
}

// awaitEnd has exited called when the container's process has ended.
func (c *container) awaitEnd() {
	if c.state.Load().Status == Stopped {
		return
	}
	c.s.work.Add(1)
	c.ctr.Process().Child().AfterExit(func(status reaper.Status) {
		defer c.s.work.Done()
		c.exited(status)
	})
}

// delete removes a container, whatever its state. Idempotent.
func (s *Server) delete(ctx context.Context, id string) error {
	s.mu.RLock()
	c := s.containers[id]
	s.mu.RUnlock()
	if c == nil {
		if !validID(id) {
			return nil
		}
		return removeDir(filepath.Join(s.cfg.StateDir, "containers", id)) // a former cri-monitor may have left it
	}
	if err := c.lock(ctx); err != nil {
		return err
	}
	defer c.unlock()
	if c.state.Load() == nil || c.gone {
		return nil // its create has failed, or another delete was faster
	}
	if err := c.delete(ctx); err != nil {
		return fmt.Errorf("delete container %s: %w", id, err)
	}
	return nil
}

func (c *container) delete(ctx context.Context) error {
	if err := c.kill(ctx); err != nil {
		return err
	}
	if _, err := c.wait(ctx); err != nil {
		return fmt.Errorf("processes do not end: %w", err)
	}
	if _, err := c.ctr.Process().Child().Wait(ctx); err != nil { // its state may be known from a former process
		return fmt.Errorf("processes do not end: %w", err)
	}
	if err := c.execs.wait(ctx); err != nil {
		return fmt.Errorf("execs do not end: %w", err)
	}
	if err := faultpoint.Hit("monitor.delete.ended"); err != nil {
		return err
	}
	if err := c.ctr.Delete(ctx); err != nil {
		return err
	}
	faultpoint.Pass("monitor.delete.deleted")
	c.streams.Close()
	c.execs.removeCgroups()
	c.s.removeLater(c.dir)
	c.gone = true
	c.s.forget(c)
	c.s.keepers.forget(c)
	c.publish.Lock()
	defer c.publish.Unlock()
	c.s.events.publish("deleted", *c.state.Load(), func() {})
	return nil
}
