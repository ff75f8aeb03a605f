package monitor

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/monitor/stdio"
)

// freezeTime is how long requests under way may take before an upgrade gives up; then nothing has happened.
const freezeTime = 15 * time.Second

// Upgrader is what the program that this package is part of knows about replacing itself.
type Upgrader interface {
	// Prepare copies a program to where nobody can change it.
	Prepare(program *os.File) (*os.File, error)
	// Check runs the copy to find out whether it can go on with what header describes. It must not take longer than ctx.
	Check(ctx context.Context, program *os.File, header []byte) error
	// Exec executes it in place of this process, with the descriptor of the state. It returns only on failure.
	Exec(program *os.File, state int) error
}

// savedHeader is the beginning of the state; it is what a new program is asked about first.
type savedHeader struct {
	Version int    `json:"version"`
	Build   string `json:"build"`
}

// CheckHeader tells whether this program can go on with the state of another, described by header.
func CheckHeader(header []byte) error {
	var h savedHeader
	if err := json.Unmarshal(header, &h); err != nil {
		return fmt.Errorf("state: %w: %w", err, errdefs.ErrDataLoss)
	}
	return checkVersion(h.Version)
}

// savedServer is all that the next program gets. Descriptors are numbers that it inherits.
type savedServer struct {
	savedHeader
	Frozen   time.Time `json:"frozen"`
	Started  time.Time `json:"started"`
	Listener int       `json:"listener"`
	Lock     int       `json:"lock"`
	Journal  []int     `json:"journal"` // of the first loop
	// Journals are those of the other loops, by number.
	Journals    map[int][]int `json:"journals,omitempty"`
	EventSeq    uint64        `json:"event_seq"`
	OOMScoreAdj int           `json:"oom_score_adj"`
	Notify      string        `json:"notify,omitempty"`
	// Stored are the names of what the service manager keeps, by container.
	Stored     map[string][]string `json:"stored,omitempty"`
	Containers []savedEntry        `json:"containers"`
	Conns      []savedConn         `json:"conns"`
}

type savedEntry struct {
	Data  json.RawMessage `json:"data"`
	Files []int           `json:"files"`
}

type savedConn struct {
	File    int          `json:"file"`
	Greeted bool         `json:"greeted"`
	Todo    []savedFrame `json:"todo,omitempty"`
	Task    *savedTask   `json:"task,omitempty"`
	Files   []int        `json:"files,omitempty"` // of the task
}

type savedFrame struct {
	Kind  kind   `json:"kind"`
	ID    uint64 `json:"id"`
	Body  []byte `json:"body"`
	Files []int  `json:"files,omitempty"`
}

// savedTask is a task of any kind.
type savedTask struct {
	Kind      string `json:"kind"`
	ID        uint64 `json:"id"` // of the request
	Container string `json:"container,omitempty"`
	// exec
	Session uint64 `json:"session,omitempty"`
	Pid     int    `json:"pid,omitempty"`
	Ended   bool   `json:"ended,omitempty"`
	Code    int    `json:"code,omitempty"`
	// Releases is that of stdioCall; Told: the client knows the exit code.
	Releases bool `json:"releases,omitempty"`
	Told     bool `json:"told,omitempty"`
	// attach
	Attachment *stdio.SavedAttachment `json:"attachment,omitempty"`
	Has        [3]bool                `json:"has,omitzero"`
	// events
	Events []Event `json:"events,omitempty"`
	Cut    bool    `json:"cut,omitempty"`
	// But is that of eventsCall. Who does not know it sends those too.
	But []string `json:"but,omitempty"`
}

// upgrade serves a request for another program.
func (c *conn) upgrade(f *frame) error {
	s := c.s
	switch {
	case s.cfg.Replace == nil || s.cfg.Reaper == nil:
		return c.fail(f.id, fmt.Errorf("this cri-monitor can't be replaced: %w", errdefs.ErrNotImplemented))
	case len(f.files) != 1:
		return c.fail(f.id, fmt.Errorf("upgrade with %d files: %w", len(f.files), errdefs.ErrInvalidArgument))
	case !s.upgrading.TryLock():
		return c.fail(f.id, fmt.Errorf("another upgrade is under way: %w", errdefs.ErrUnavailable))
	}
	program := f.files[0]
	f.files = nil
	t := &upgradeTask{id: f.id, over: make(chan error, 1)}
	c.task = t
	s.work.Add(1)
	go func() {
		defer s.work.Done()
		defer s.upgrading.Unlock()
		defer program.Close()
		err := s.upgrade(program)
		s.log.Error("upgrade", "err", err)
		t.over <- err
	}()
	return nil
}

// upgradeTask waits for the end of an upgrade: if it fails here, if it succeeds in the next program.
type upgradeTask struct {
	id   uint64
	over chan error
}

func (t *upgradeTask) run(c *conn) error {
	select {
	case err := <-t.over:
		if err == nil {
			return c.write(kindOK, t.id, c.s.version)
		}
		return c.fail(t.id, err)
	case <-c.frozen:
		return errFrozen
	}
}

func (t *upgradeTask) save() (savedTask, []int) { return savedTask{Kind: "upgrade", ID: t.id}, nil }

// upgrade goes on in another program. It returns only if that did not succeed, and then all is as before.
func (s *Server) upgrade(program *os.File) error {
	ctx, cancel := context.WithTimeout(context.Background(), freezeTime)
	defer cancel()
	copied, err := s.cfg.Replace.Prepare(program)
	if err != nil {
		return fmt.Errorf("upgrade: %w", err)
	}
	defer copied.Close()
	// Asked before all stands still: from then on nobody hears of the end of a process, that of a check neither.
	accepts := savedVersion
	if err := s.ask(ctx, copied, accepts); err != nil {
		if accepts = savedVersionMin; s.ask(ctx, copied, accepts) != nil {
			return err
		}
	}
	thaw, err := s.freeze(ctx)
	if err != nil {
		return fmt.Errorf("upgrade: %w", err)
	}
	defer thaw()
	v, fds, err := s.save()
	if err != nil {
		return fmt.Errorf("upgrade: %w", err)
	}
	if v.Version > accepts {
		return fmt.Errorf("upgrade: the new program goes on with states up to version %d, there is one of version %d now: %w",
			accepts, v.Version, errdefs.ErrNotImplemented)
	}
	state, err := writeState(v)
	if err != nil {
		return fmt.Errorf("upgrade: state: %w", err)
	}
	defer unix.Close(state)
	defer setCloexec(append(fds, state), true)
	setCloexec(append(fds, state), false)
	return fmt.Errorf("upgrade: exec: %w", s.cfg.Replace.Exec(copied, state))
}

// ask finds out whether a program can go on with a state of the given version.
func (s *Server) ask(ctx context.Context, program *os.File, version int) error {
	header, err := json.Marshal(savedHeader{version, s.version.Build})
	if err != nil {
		return err
	}
	if err := s.cfg.Replace.Check(ctx, program, header); err != nil {
		return fmt.Errorf("upgrade: the new program refuses: %w", err)
	}
	return nil
}

func setCloexec(fds []int, on bool) {
	flags := 0
	if on {
		flags = unix.FD_CLOEXEC
	}
	for _, fd := range fds {
		_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETFD, flags)
	}
}

// writeState puts v into a memfd that nobody can change.
func writeState(v *savedServer) (int, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return -1, err
	}
	fd, err := unix.MemfdCreate("cri-monitor-state", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return -1, err
	}
	for at := 0; at < len(b); {
		n, err := unix.Write(fd, b[at:])
		if err != nil {
			unix.Close(fd)
			return -1, err
		}
		at += n
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, seals); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

func readState(f *os.File) (*savedServer, error) {
	b, err := io.ReadAll(io.NewSectionReader(f, 0, 1<<40))
	if err != nil {
		return nil, err
	}
	v := &savedServer{}
	if err := json.Unmarshal(b, v); err != nil {
		return nil, fmt.Errorf("%w: %w", err, errdefs.ErrDataLoss)
	}
	return v, checkVersion(v.Version)
}

// save describes the frozen server, and lists the descriptors that the next program inherits.
func (s *Server) save() (v *savedServer, fds []int, err error) {
	v = &savedServer{
		savedHeader: savedHeader{savedVersionMin, s.version.Build}, Frozen: time.Now(), Started: s.version.Started,
		Journals: s.loops.Journals(), EventSeq: s.events.last(), OOMScoreAdj: s.oomScoreAdj, Notify: s.cfg.Notify,
	}
	if s.keepers.store != nil {
		v.Stored = s.keepers.store.stored()
	}
	for _, files := range v.Journals {
		fds = append(fds, files...)
	}
	v.Journal = v.Journals[0]
	delete(v.Journals, 0)
	if v.Listener, err = rawFD(s.ln); err != nil {
		return nil, nil, err
	}
	if v.Lock, err = rawFD(s.lock); err != nil {
		return nil, nil, err
	}
	fds = append(fds, v.Listener, v.Lock)
	for _, c := range s.all() {
		entry, files, _, err := c.save(context.Background(), true)
		if err != nil {
			return nil, nil, fmt.Errorf("container %s: %w", c.id, err)
		}
		v.Version = max(v.Version, entry.Version)
		data, err := entry.appendJSON(nil)
		if err != nil {
			return nil, nil, fmt.Errorf("container %s: %w", c.id, err)
		}
		v.Containers = append(v.Containers, savedEntry{data, files})
		fds = append(fds, files...)
	}
	for _, c := range s.connections() {
		entry, err := c.save()
		if err != nil {
			return nil, nil, err
		}
		v.Conns = append(v.Conns, entry)
		fds = append(append(fds, entry.File), entry.Files...)
		for _, f := range entry.Todo {
			fds = append(fds, f.Files...)
		}
	}
	return v, fds, nil
}

func (c *conn) save() (v savedConn, err error) {
	v.Greeted = c.greeted
	if v.File, err = rawFD(c.c); err != nil {
		return v, err
	}
	for _, f := range c.todo {
		frame := savedFrame{Kind: f.kind, ID: f.id, Body: f.body}
		for _, file := range f.files {
			fd, err := rawFD(file)
			if err != nil {
				return v, err
			}
			frame.Files = append(frame.Files, fd)
		}
		v.Todo = append(v.Todo, frame)
	}
	if c.task != nil {
		task, fds := c.task.save()
		v.Task, v.Files = &task, fds
	}
	return v, nil
}
