package monitor

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/faultpoint"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/monitor/stdio"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/reaper"
)

const (
	// drainTime is how long the output of an ended container may take to reach its end: only a process outside its
	// cgroup and pid namespace can hold the pipe open that long.
	drainTime = time.Second
	// killTime bounds the killing of what an ended container leaves.
	killTime = 10 * time.Second
)

// container is one container from Create to Delete.
type container struct {
	s       *Server
	id      string
	dir     string              // the engine's
	cgroup  engine.PackedCgroup // where its processes are; zero when only the OCI runtime knows
	oom     engine.PackedCgroup
	oomKill uint64 // the kernel's count at the beginning
	// ownPids: its init is pid 1 of its own pid namespace, so that the kernel kills all others with it.
	ownPids     bool
	oci         *OCIRuntime // nil: the native engine
	oomScoreAdj *int
	uids, gids  []specs.LinuxIDMapping // of its user namespace

	// op is held, as a one-slot semaphore, by Create, Start and Delete.
	op chan struct{}
	// starting is held while Start decides what the state is, so that an exit is published after it.
	starting sync.Mutex

	ctr     engine.Container
	streams *stdio.Streams

	publish sync.Mutex // one change of state at a time, in the order of its event
	state   atomic.Pointer[State]
	stopped chan struct{}

	execs    execSet
	sessions []engine.Process // of a former process, until their connections are restored
	gone     bool             // deleted; guarded by op

	keeping sync.Mutex  // one picture of it at a time goes to those who keep it
	unkept  atomic.Bool // the last one could not be made
	retries atomic.Bool // another is going to be made
}

// lock takes op. The error is ctx's.
func (c *container) lock(ctx context.Context) error {
	select {
	case c.op <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("container %s is busy: %w", c.id, ctx.Err())
	}
}

func (c *container) unlock() { <-c.op }

// change publishes a new state and its event.
func (c *container) change(event string, f func(*State)) State {
	c.publish.Lock()
	defer c.publish.Unlock()
	st := *c.state.Load()
	f(&st)
	c.s.events.publish(event, st, func() { c.state.Store(&st) })
	return st
}

func (c *container) start(ctx context.Context) (State, error) {
	if err := c.lock(ctx); err != nil {
		return State{}, err
	}
	defer c.unlock()
	return c.run(ctx)
}

// run is start with op held.
func (c *container) run(ctx context.Context) (State, error) {
	if st := c.state.Load(); st.StartError != "" { // whoever asks again must not take this for the reason
		if st.Status == Created { // its start has failed, and its end is under way
			select {
			case <-c.stopped:
				st = c.state.Load()
			case <-ctx.Done():
				return State{}, fmt.Errorf("container %s has not ended yet after a start that failed: %s: %w", c.id, st.StartError, ctx.Err())
			}
		}
		return State{}, fmt.Errorf("container %s is %s: %s: %w", c.id, st.Status, st.StartError, errdefs.ErrFailedPrecondition)
	} else if st.Status != Created {
		return State{}, fmt.Errorf("container %s is %s, not created: %w", c.id, st.Status, errdefs.ErrFailedPrecondition)
	}
	if err := faultpoint.Hit("monitor.start.begin"); err != nil {
		return State{}, fmt.Errorf("start: %w", err)
	}
	c.starting.Lock()
	c.streams.SetMark(markStarting)
	if err := c.ctr.Start(ctx); err != nil {
		c.change("", func(st *State) { st.StartError = err.Error() })
		c.starting.Unlock()
		_ = c.kill(ctx) // it should be dead by the engine's contract; make sure that its exit follows
		return State{}, fmt.Errorf("start: %w", err)
	}
	faultpoint.Pass("monitor.start.started")
	st := c.change("started", func(st *State) { st.Status, st.StartedAt = Running, time.Now() })
	faultpoint.Pass("monitor.start.told")
	c.keep()
	c.streams.SetMark(markNone)
	c.starting.Unlock()
	return st, nil
}

// exited brings the container to its end: its init was reaped.
func (c *container) exited(status reaper.Status) {
	finished := time.Now()
	faultpoint.Pass("monitor.exit.reaped")
	c.starting.Lock()   // a Start under way publishes first
	c.starting.Unlock() //lint:ignore SA2001 only waited for
	ctx, cancel := context.WithTimeout(context.Background(), killTime)
	defer cancel()
	oom := false
	if n, ok := c.oomKills(); ok {
		oom = n > c.oomKill
	}
	if !c.ownPids {
		if err := errors.Join(c.ctr.Kill(ctx), c.execs.kill()); err != nil {
			c.s.log.Error("processes of an ended container may live on", "container", c.id, "err", err)
		}
	}
	c.streams.Stop(ctx, drainTime)
	faultpoint.Pass("monitor.exit.drained")
	c.change("stopped", func(st *State) {
		st.Status, st.Pid, st.FinishedAt, st.OOMKilled = Stopped, 0, finished, oom
		st.ExitCode, st.ExitUnknown = status.Code(), status.Unknown
		if status.Signaled() && !status.Unknown {
			st.Signal = int(status.Signal())
		}
		if st.StartError != "" {
			st.ExitCode, st.Signal = startErrorCode, 0
		}
	})
	faultpoint.Pass("monitor.exit.told")
	c.keep()
	close(c.stopped)
}

// What the journal says of a container; see stdio.Streams.SetMark.
const (
	markNone     = iota
	markStarting // its Start is being carried out
)

// startErrorCode is the exit code of a container whose program could not be executed; containerd's convention.
const startErrorCode = 128

// wait returns when the container has come to its end.
func (c *container) wait(ctx context.Context) (State, error) {
	select {
	case <-c.stopped:
		return *c.state.Load(), nil
	case <-ctx.Done():
		return State{}, ctx.Err()
	}
}

func (c *container) signal(sig unix.Signal) error {
	if c.state.Load().Status == Stopped {
		return fmt.Errorf("container %s has ended: %w", c.id, errdefs.ErrNotFound)
	}
	if err := c.ctr.Process().Signal(sig); err != nil {
		return fmt.Errorf("signal %d to container %s: %w", sig, c.id, err)
	}
	return nil
}

func (c *container) kill(ctx context.Context) error {
	if err := errors.Join(c.ctr.Kill(ctx), c.execs.kill()); err != nil {
		return fmt.Errorf("kill container %s: %w", c.id, err)
	}
	return nil
}
