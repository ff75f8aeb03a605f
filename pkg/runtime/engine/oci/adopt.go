package oci

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

// saved is engine.Saved.Data. Files are the pidfd of the first process and those of the sessions.
type saved struct {
	ID      string `json:"id"`
	Dir     string `json:"dir"`
	Cgroups string `json:"cgroups,omitempty"`
	Pid     int    `json:"pid"`
	// Ended: the first process was reaped before its pidfd could be had, so that there is none.
	Ended bool `json:"ended,omitempty"`
}

// Save implements engine.Container.
func (c *container) Save() (*engine.Saved, error) {
	d := saved{ID: c.id, Dir: c.dir, Cgroups: c.cgroups, Pid: c.init.pid, Ended: c.init.pidfd < 0}
	s := &engine.Saved{}
	if !d.Ended {
		s.Files = append(s.Files, c.init.pidfd)
	}
	for _, p := range c.running() {
		if p.pidfd >= 0 && !p.ended() {
			s.Files, s.Sessions = append(s.Files, p.pidfd), append(s.Sessions, p.pid)
		}
	}
	var err error
	if s.Data, err = json.Marshal(&d); err != nil {
		return nil, fmt.Errorf("save container %s: %w", c.id, err)
	}
	return s, nil
}

// Adopt implements engine.Engine.
func (e *Engine) Adopt(ctx context.Context, s *engine.Saved) (_ *engine.Adopted, err error) {
	files := slices.Clone(s.Files)
	defer func() {
		if err != nil {
			for _, fd := range files {
				unix.Close(fd)
			}
		}
	}()
	var d saved
	if err := json.Unmarshal(s.Data, &d); err != nil {
		return nil, fmt.Errorf("saved container: %w: %w", err, errdefs.ErrDataLoss)
	}
	if d.Ended || len(files) != 1+len(s.Sessions) || d.Pid <= 0 {
		return nil, fmt.Errorf("saved container %q with %d of %d files: %w", d.ID, len(files), 1+len(s.Sessions), errdefs.ErrDataLoss)
	}
	c := &container{engine: e, id: d.ID, dir: d.Dir, cgroups: d.Cgroups, execs: map[*process]struct{}{}}
	all := make([]*process, len(files))
	for i, pid := range append([]int{d.Pid}, s.Sessions...) {
		child, err := e.reaper.Attend(pid, files[i])
		if err != nil {
			return nil, fmt.Errorf("container %s: %w", d.ID, err)
		}
		all[i] = &process{pid: pid, child: child, pidfd: files[i]}
	}
	c.init = all[0]
	a := &engine.Adopted{Container: c}
	for _, p := range all[1:] {
		c.watch(p)
		a.Sessions = append(a.Sessions, p)
	}
	if a.Pending = s.Pending; s.Pending && s.Died {
		a.Pending, a.StartError = c.pending(ctx, s.Starting)
	}
	return a, nil
}

// pending asks the runtime whether the container still waits for its start. A start that was begun by a process that
// has died goes on by itself, and gets some time.
func (c *container) pending(ctx context.Context, starting bool) (bool, error) {
	for end := time.Now().Add(cutShortTime); ; time.Sleep(20 * time.Millisecond) {
		status := c.status(ctx)
		switch {
		case status == "created" && !starting:
			return true, nil
		case status == "running" || status == "paused" || !starting:
			return false, nil
		case status == "stopped" || time.Now().After(end):
			_ = c.init.Signal(unix.SIGKILL)
			return false, fmt.Errorf("start %s: it was cut short by the death of the process that carried it out: %w", c.id, errdefs.ErrUnavailable)
		}
	}
}

// cutShortTime is how long a start may go on whose caller has died.
const cutShortTime = 2 * time.Second

// status is what the runtime says of the container, "" if it says nothing.
func (c *container) status(ctx context.Context) specs.ContainerState {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	args := append([]string{"--root", c.engine.root}, c.engine.args...)
	out, code, err := c.engine.output(ctx, append(args, "state", c.id)...)
	var st specs.State
	if err != nil || code != 0 || json.Unmarshal(out, &st) != nil {
		return ""
	}
	return st.Status
}

// Forget has the runtime kill and delete a container that nobody goes on with: its create was cut short by the death of
// the process that carried it out. dir is an empty directory.
func (e *Engine) Forget(ctx context.Context, id, dir string) error {
	c := &container{engine: e, id: id, dir: dir}
	if err := c.forget(ctx); err != nil {
		return fmt.Errorf("forget %s: %w", id, err)
	}
	return nil
}
