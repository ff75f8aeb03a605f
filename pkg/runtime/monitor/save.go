package monitor

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/monitor/stdio"
)

// savedVersion is that of savedContainer and savedServer. It is raised when a reader of the older form would misread
// the newer; fields that may be ignored don't raise it.
const (
	savedVersion    = 2 // a stub that waits for Start may have its identity already
	savedVersionMin = 1
)

// checkVersion refuses what this program can't go on with.
func checkVersion(v int) error {
	if v < savedVersionMin || v > savedVersion {
		return fmt.Errorf("state of version %d, this cri-monitor reads %d to %d: %w", v, savedVersionMin, savedVersion, errdefs.ErrNotImplemented)
	}
	return nil
}

// savedContainer is a container as another cri-monitor needs it. Its descriptors come beside it: the engine's, and then
// those of stdio that Has names, in its order.
type savedContainer struct {
	Version     int                    `json:"version"`
	State       State                  `json:"state"`
	OCI         *OCIRuntime            `json:"oci,omitempty"`
	Cgroup      engine.PackedCgroup    `json:"cgroup,omitzero"`
	OOM         engine.PackedCgroup    `json:"oom,omitzero"` // zero: Cgroup
	OOMKills    uint64                 `json:"oom_kills,omitempty"`
	OwnPids     bool                   `json:"own_pids,omitempty"`
	OOMScoreAdj *int                   `json:"oom_score_adj,omitempty"`
	UIDs        []specs.LinuxIDMapping `json:"uids,omitempty"`
	GIDs        []specs.LinuxIDMapping `json:"gids,omitempty"`
	Engine      *engine.Saved          `json:"engine"`
	EngineFiles int                    `json:"engine_files"`
	Stdio       stdio.Saved            `json:"stdio"`
	Has         [5]bool                `json:"has"` // stdin, stdout, stderr, terminal, log
}

// save describes the container. The first `own` of the descriptors belong to the container, the caller closes the others.
func (c *container) save(ctx context.Context, sessions bool) (v savedContainer, fds []int, own int, err error) {
	v = savedContainer{
		Version: savedVersionMin, State: *c.state.Load(), OCI: c.oci, Cgroup: c.cgroup, OOMKills: c.oomKill,
		OwnPids: c.ownPids, OOMScoreAdj: c.oomScoreAdj, UIDs: c.uids, GIDs: c.gids,
	}
	if c.oom != c.cgroup {
		v.OOM = c.oom
	}
	if v.Engine, err = c.ctr.Save(); err != nil {
		return v, nil, 0, err
	}
	if v.Engine.Newer {
		v.Version = savedVersion
	}
	fds = v.Engine.Files
	if n := len(v.Engine.Sessions); !sessions && n > 0 {
		fds, v.Engine.Sessions = fds[:len(fds)-n], nil
	}
	v.EngineFiles, own = len(fds), len(fds)
	saved, files, err := c.streams.Save(ctx)
	if err != nil {
		return v, nil, 0, err
	}
	v.Stdio = saved
	for i, fd := range []int{files.Stdin, files.Stdout, files.Stderr, files.Terminal, files.Log} {
		if fd >= 0 {
			v.Has[i] = true
			fds = append(fds, fd)
		}
	}
	return v, fds, own, nil
}

func closeFDs(fds []int) {
	for _, fd := range fds {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// take splits what came with a savedContainer.
func (v *savedContainer) take(fds []int) (stdio.Files, error) {
	f := stdio.NoFiles
	want := v.EngineFiles
	for _, has := range v.Has {
		if has {
			want++
		}
	}
	if v.Engine == nil || v.EngineFiles < 0 || want != len(fds) {
		return f, fmt.Errorf("container %q with %d of %d files: %w", v.State.ID, len(fds), want, errdefs.ErrDataLoss)
	}
	v.Engine.Files = fds[:v.EngineFiles:v.EngineFiles]
	rest := fds[v.EngineFiles:]
	for i, at := range []*int{&f.Stdin, &f.Stdout, &f.Stderr, &f.Terminal, &f.Log} {
		if v.Has[i] {
			*at, rest = rest[0], rest[1:]
		}
	}
	return f, nil
}

// restore goes on with a container that another cri-monitor has saved; died tells that it had no time to say its last
// word; what it was about to say is in its loop's journal. It owns fds, also on error. The container's end is not awaited yet.
func (s *Server) restore(ctx context.Context, data json.RawMessage, fds []int, died bool) (c *container, err error) {
	var v savedContainer
	if err := json.Unmarshal(data, &v); err != nil {
		closeFDs(fds)
		return nil, fmt.Errorf("saved container: %w: %w", err, errdefs.ErrDataLoss)
	}
	if err = checkVersion(v.Version); err == nil && !validID(v.State.ID) {
		err = fmt.Errorf("saved container %q: %w", v.State.ID, errdefs.ErrDataLoss)
	}
	var files stdio.Files
	if err == nil {
		files, err = v.take(fds)
	}
	if err == nil {
		c, err = s.reserve(v.State.ID, &v)
	}
	if err != nil {
		closeFDs(fds)
		return nil, err
	}
	defer c.unlock()
	if err := c.restore(ctx, &v, files, died); err != nil {
		s.forget(c)
		return nil, fmt.Errorf("restore container %s: %w", c.id, err)
	}
	return c, nil
}

func (c *container) restore(ctx context.Context, v *savedContainer, files stdio.Files, died bool) error {
	var err error
	st := v.State
	// First: an engine that can't go on must not keep the output from being read.
	if c.streams, err = c.s.loops.Restore(c.id, v.Stdio, files, died, c.inputClosed); err != nil {
		closeFDs(v.Engine.Files)
		return err
	}
	starting := c.streams.Mark() == markStarting
	eng, err := c.s.cfg.Engine(c.oci)
	if err != nil {
		closeFDs(v.Engine.Files)
		c.streams.Close()
		return fmt.Errorf("engine: %w", err)
	}
	v.Engine.Pending, v.Engine.Died, v.Engine.Starting = st.Status == Created, died, starting
	a, err := eng.Adopt(ctx, v.Engine)
	if err != nil {
		c.streams.Close()
		return err
	}
	c.ctr = a.Container
	c.sessions = a.Sessions
	if cg := c.cgroup.Cgroup(); cg != nil && c.oci == nil {
		c.execs.find(cg)
	}
	switch {
	case st.Status != Created || a.Pending:
	case a.StartError != nil:
		st.StartError = a.StartError.Error()
	default:
		st.Status = Running
		st.StartedAt = st.CreatedAt // not before; the true time went with the one who knew it
	}
	c.streams.SetMark(markNone)
	c.state.Store(&st)
	if st.Status == Stopped {
		close(c.stopped)
	}
	return nil
}
