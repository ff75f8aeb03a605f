package native

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/quickjson"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

// saved is engine.Saved.Data. Files are the pidfd of the first process, the socket to the stub if Pending is set, and
// the pidfds of the sessions.
type saved struct {
	ID     string                 `json:"id"`
	Dir    string                 `json:"dir"`
	Spec   *specs.Spec            `json:"spec"`
	Cgroup engine.PackedCgroup    `json:"cgroup,omitzero"`
	Joins  uint64                 `json:"joins"`
	UIDs   []specs.LinuxIDMapping `json:"uids,omitempty"`
	GIDs   []specs.LinuxIDMapping `json:"gids,omitempty"`
	Pid    int                    `json:"pid"`
	// Pending is what engines have saved that did not prepare stubs; they don't know Prepared.
	Pending  *savedPending `json:"pending,omitempty"`
	Prepared *savedPending `json:"prepared,omitempty"`
}

type savedPending struct {
	Name   string      `json:"name,omitempty"`
	Spec   *specs.Spec `json:"spec,omitempty"`
	Filter []byte      `json:"filter,omitempty"`
	Top    bool        `json:"top,omitempty"`
}

// appendJSON is what json.Marshal makes of d: three pictures of each container are made.
func (d *saved) appendJSON(texts *shared) ([]byte, error) {
	b := make([]byte, 0, 4<<10)
	b = quickjson.String(quickjson.Key(append(b, '{'), "id"), d.ID)
	b = quickjson.String(quickjson.Key(b, "dir"), d.Dir)
	spec, err := texts.json(d.Spec)
	if err != nil {
		return nil, err
	}
	b = append(quickjson.Key(b, "spec"), spec...)
	if d.Cgroup != (engine.PackedCgroup{}) {
		b = d.Cgroup.AppendJSON(quickjson.Key(b, "cgroup"))
	}
	b = quickjson.Uint(quickjson.Key(b, "joins"), d.Joins)
	seldom := func(name string, v any) {
		if err == nil {
			var text []byte
			text, err = json.Marshal(v)
			b = append(quickjson.Key(b, name), text...)
		}
	}
	if len(d.UIDs) > 0 {
		seldom("uids", d.UIDs)
	}
	if len(d.GIDs) > 0 {
		seldom("gids", d.GIDs)
	}
	b = quickjson.Int(quickjson.Key(b, "pid"), d.Pid)
	if d.Pending != nil {
		seldom("pending", d.Pending)
	}
	if d.Prepared != nil {
		seldom("prepared", d.Prepared)
	}
	return append(b, '}'), err
}

// waiting is the part of d that tells of a stub, nil if the container runs.
func (d *saved) waiting() *savedPending {
	if d.Pending != nil {
		return d.Pending
	}
	return d.Prepared
}

// Save implements engine.Container.
func (c *container) Save() (*engine.Saved, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	d := saved{ID: c.id, Dir: c.dir, Spec: c.spec, Cgroup: c.cgroup, Joins: uint64(c.joins), UIDs: c.ids.uids, GIDs: c.ids.gids, Pid: c.init.Pid()}
	s := &engine.Saved{Files: []int{c.init.pidfd}}
	if c.pending != nil {
		if c.pending.failed == nil { // nobody else could make sense of the answer
			c.pending.failed = c.pending.stub.settled()
		}
		if err := c.pending.failed; err != nil {
			return nil, fmt.Errorf("save container %s: %w", c.id, err)
		}
		p := &savedPending{Name: c.pending.name, Spec: toStart(c.pending.spec), Filter: c.pending.filter, Top: c.pending.top}
		if s.Newer = !c.pending.unprepared; s.Newer {
			d.Prepared = p
		} else {
			d.Pending = p
		}
		s.Files = append(s.Files, c.pending.stub.fd)
	}
	for _, p := range c.execs {
		if p.pidfd >= 0 && !p.ended() {
			s.Files, s.Sessions = append(s.Files, p.pidfd), append(s.Sessions, p.Pid())
		}
	}
	var err error
	if s.Data, err = d.appendJSON(&c.engine.kept); err != nil {
		return nil, fmt.Errorf("save container %s: %w", c.id, err)
	}
	return s, nil
}

// toStart is the part of a spec that Start needs: what it is to be mounted with, and limited to, is done.
func toStart(s *specs.Spec) *specs.Spec {
	if s == nil {
		return nil
	}
	t := kept(s)
	t.Process, t.Hostname, t.Domainname = s.Process, s.Hostname, s.Domainname
	return t
}

// Adopt implements engine.Engine.
func (e *Engine) Adopt(ctx context.Context, s *engine.Saved) (_ *engine.Adopted, err error) {
	files := s.Files
	defer func() {
		if err != nil {
			for _, fd := range files {
				closeFD(fd)
			}
		}
	}()
	var d saved
	if err := json.Unmarshal(s.Data, &d); err != nil {
		return nil, fmt.Errorf("saved container: %w: %w", err, errdefs.ErrDataLoss)
	}
	want := 1 + len(s.Sessions)
	w := d.waiting()
	if w != nil {
		want++
	}
	whole := func(s *specs.Spec) bool { return s != nil && s.Process != nil && s.Linux != nil }
	if len(files) != want || !whole(d.Spec) || d.Pending != nil && !whole(w.Spec) || d.Pid <= 0 {
		return nil, fmt.Errorf("saved container %q with %d of %d files: %w", d.ID, len(files), want, errdefs.ErrDataLoss)
	}
	c := &container{engine: e, id: d.ID, dir: d.Dir, spec: e.kept.share(d.Spec), cgroup: d.Cgroup, joins: uintptr(d.Joins), ids: idMap{d.UIDs, d.GIDs}}
	if c.init, err = e.attend(d.Pid, files[0]); err != nil {
		return nil, fmt.Errorf("container %s: %w", d.ID, err)
	}
	a := &engine.Adopted{Container: c}
	rest := files[1:]
	if w != nil {
		if waits(rest[0]) {
			a.Pending = true
			c.pending = &pending{stub: &stub{conn: conn{rest[0]}, engine: e, child: c.init.child, pidfd: files[0]},
				name: w.Name, spec: w.Spec, filter: w.Filter, unprepared: d.Pending != nil, top: w.Top}
		} else {
			closeFD(rest[0])
		}
		files[1], rest = -1, rest[1:]
		if s.Starting && a.Pending {
			a.Pending, a.StartError = false, c.cutShort(ctx)
		}
	}
	for i, pid := range s.Sessions {
		p, err := e.attend(pid, rest[i])
		if err != nil {
			return nil, fmt.Errorf("session %d of container %s: %w", pid, d.ID, err)
		}
		c.execs = append(c.execs, p)
		a.Sessions = append(a.Sessions, p)
	}
	return a, nil
}

func (e *Engine) attend(pid, pidfd int) (*process, error) {
	child, err := e.reaper.Attend(pid, pidfd)
	if err != nil {
		return nil, err
	}
	return &process{child: child, pidfd: pidfd}, nil
}

// waits tells whether a stub still has its socket: it closes with the execve of its program.
func waits(socket int) bool {
	fds := []unix.PollFd{{Fd: int32(socket), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	return err != nil || n == 0 || fds[0].Revents&unix.POLLHUP == 0
}

// cutShort ends a Start that was begun by a process that has died. The stub may have got a part of its orders, and so
// can't be given further ones: it becomes its program by itself, or it is killed.
func (c *container) cutShort(ctx context.Context) error {
	p := c.pending
	c.pending = nil
	defer p.stub.conn.close()
	fds := []unix.PollFd{{Fd: int32(p.stub.fd), Events: unix.POLLIN}}
	n, err := 0, error(unix.EINTR)
	for errors.Is(err, unix.EINTR) {
		n, err = unix.Poll(fds, int(cutShortTime/time.Millisecond))
	}
	// Something to read is the stub's word on why it failed; nothing but the end is an execve that succeeded.
	if err == nil && n == 1 && fds[0].Revents&unix.POLLHUP != 0 {
		var b [1]byte
		if n, _, err := unix.Recvfrom(p.stub.fd, b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT); err == nil && n == 0 && !c.init.dead(0) {
			return nil
		}
	}
	_ = c.Kill(ctx)
	return fmt.Errorf("start container %s: it was cut short by the death of the process that carried it out: %w", c.id, errdefs.ErrUnavailable)
}

// cutShortTime is how long a stub that has all its orders may take for them.
const cutShortTime = time.Second
