package monitor

import (
	"context"
	"fmt"
	"maps"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/monitor/stdio"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/reaper"
)

// rawFD is the descriptor behind a file or connection, which keeps it.
func rawFD(c syscall.Conn) (fd int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	err = raw.Control(func(n uintptr) { fd = int(n) })
	return fd, err
}

// ResumeServer goes on, in the same process, with what the program before this one has put into state. Socket and
// StateDir in cfg are as they were. What can't be gone on with is logged; an error means that nothing can.
func ResumeServer(cfg ServerConfig, state *os.File) (*Server, error) {
	v, err := readState(state)
	if err != nil {
		return nil, fmt.Errorf("state of the former cri-monitor: %w", err)
	}
	setCloexec(v.inherited(), true)
	cfg.Notify = v.Notify
	s := newServer(cfg)
	if s.keepers.store != nil {
		s.keepers.store.resume(v.Stored)
	}
	s.version.Started, s.oomScoreAdj, s.events.seq = v.Started, v.OOMScoreAdj, v.EventSeq
	s.lock = os.NewFile(uintptr(v.Lock), "lock")
	if s.ln, err = inheritListener(v.Listener); err != nil {
		return nil, err
	}
	if s.loops, err = stdio.Resume(cfg.Log, s.keepJournal, v.journals()); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	for _, e := range v.Containers {
		if _, err := s.restore(ctx, e.Data, e.Files, false); err != nil {
			cfg.Log.Error("container lost in an upgrade", "err", err)
		}
	}
	for i := range v.Conns {
		if err := s.resumeConn(&v.Conns[i]); err != nil {
			cfg.Log.Error("connection lost in an upgrade", "err", err)
		}
	}
	s.loops.Begin()
	for _, c := range s.all() {
		c.sessions = nil
		c.keep()
		c.awaitEnd() // now that all are there who want to know
	}
	cfg.Log.Info("upgraded", "from", v.Build, "to", cfg.Build, "took", time.Since(v.Frozen))
	return s, nil
}

// journals are those of all loops, by number.
func (v *savedServer) journals() map[int][]int {
	all := map[int][]int{0: v.Journal}
	maps.Copy(all, v.Journals)
	return all
}

// inherited are all descriptors of the state.
func (v *savedServer) inherited() []int {
	fds := []int{v.Listener, v.Lock}
	for _, files := range v.journals() {
		fds = append(fds, files...)
	}
	for _, e := range v.Containers {
		fds = append(fds, e.Files...)
	}
	for _, c := range v.Conns {
		fds = append(append(fds, c.File), c.Files...)
		for _, f := range c.Todo {
			fds = append(fds, f.Files...)
		}
	}
	return fds
}

func inheritListener(fd int) (*net.UnixListener, error) {
	f := os.NewFile(uintptr(fd), "listener")
	defer f.Close()
	ln, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("listener: %w", err)
	}
	ul, ok := ln.(*net.UnixListener)
	if !ok {
		ln.Close()
		return nil, fmt.Errorf("listener: it is a %T", ln)
	}
	ul.SetUnlinkOnClose(false)
	return ul, nil
}

// resumeConn takes over a connection; Serve starts it.
func (s *Server) resumeConn(v *savedConn) error {
	f := os.NewFile(uintptr(v.File), "connection")
	nc, err := net.FileConn(f)
	f.Close()
	if err != nil {
		closeFDs(v.Files)
		return err
	}
	uc, ok := nc.(*net.UnixConn)
	if !ok {
		nc.Close()
		closeFDs(v.Files)
		return fmt.Errorf("connection: it is a %T", nc)
	}
	c := s.newConn(uc)
	c.greeted = v.Greeted
	for _, t := range v.Todo {
		frame := &frame{kind: t.Kind, id: t.ID, body: t.Body}
		for _, fd := range t.Files {
			frame.files = append(frame.files, os.NewFile(uintptr(fd), "passed"))
		}
		c.todo = append(c.todo, frame)
	}
	if v.Task != nil {
		if c.task, err = s.resumeTask(c, v.Task, v.Files); err != nil {
			c.close()
			return err
		}
	}
	s.conns[c] = struct{}{}
	return nil
}

// resumeTask goes on with a task; it owns fds.
func (s *Server) resumeTask(c *conn, v *savedTask, fds []int) (task, error) {
	switch v.Kind {
	case "events":
		return &eventTask{id: v.ID, sub: s.events.resume(v.Events, v.Cut, v.But)}, nil
	case "keep":
		s.keepers.add(c, v.ID)
		return &keepTask{v.ID}, nil
	case "upgrade":
		t := &upgradeTask{id: v.ID, over: make(chan error, 1)}
		t.over <- nil
		return t, nil
	}
	ct, err := s.find(v.Container)
	if err != nil {
		closeFDs(fds)
		return nil, err
	}
	switch v.Kind {
	case "wait":
		return &waitTask{v.ID, ct}, nil
	case "exec":
		return ct.resumeExec(v)
	case "attach":
		files := [3]int{-1, -1, -1}
		for i, has := range v.Has {
			if has && len(fds) > 0 {
				files[i], fds = fds[0], fds[1:]
			}
		}
		if v.Attachment == nil {
			closeFDs(files[:])
			return nil, fmt.Errorf("attachment of %s without its state", v.Container)
		}
		a, err := ct.streams.Reattach(*v.Attachment, files)
		return &attachTask{v.ID, ct, a}, err
	}
	closeFDs(fds)
	return nil, fmt.Errorf("task of kind %q", v.Kind)
}

func (c *container) resumeExec(v *savedTask) (task, error) {
	x := &session{c: c, n: v.Session}
	t := &execTask{id: v.ID, x: x, releases: v.Releases, told: v.Told}
	if v.Ended {
		x.proc = endedProcess{v.Pid, reaper.Ended(v.Pid, v.Code)}
	}
	if v.Told { // finished already
		return t, nil
	}
	c.execs.resume(x)
	if v.Ended {
		return t, nil
	}
	for _, p := range c.sessions {
		if p.Pid() == v.Pid {
			x.proc = p
			return t, nil
		}
	}
	x.finish()
	return nil, fmt.Errorf("exec session %d of %s: process %d is not known", v.Session, c.id, v.Pid)
}

// endedProcess is one whose end was known before.
type endedProcess struct {
	pid   int
	child *reaper.Child
}

func (p endedProcess) Pid() int                 { return p.pid }
func (p endedProcess) Child() *reaper.Child     { return p.child }
func (p endedProcess) Terminal() *os.File       { return nil }
func (p endedProcess) Signal(unix.Signal) error { return unix.ESRCH }
