package cri

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/monitor"
)

// retryMonitor is how long to wait before cri-monitor is called again after it was lost.
const retryMonitor = 200 * time.Millisecond

// resumeAtOnce is how many sandboxes resume stops at the same time.
const resumeAtOnce = 8

// recover brings the records and what is there together, before the server answers its first call.
func (s *Server) recover(ctx context.Context) error {
	list, err := s.monitor.List(ctx)
	if err != nil {
		return fmt.Errorf("ask cri-monitor for its containers: %w", err)
	}
	states := make(map[string]monitor.State, len(list))
	for _, st := range list {
		states[st.ID] = st
	}
	if err := s.containers.Recover(ctx, states); err != nil {
		return err
	}
	if err := s.sandboxes.Recover(ctx, states); err != nil {
		return err
	}
	// What has no record was begun by a server that died before its first word of it, or outlived its removal.
	found, err := s.strays(list)
	if err != nil {
		s.log.Error("look for what has no record", "error", err)
	}
	s.takeDown(ctx, found)
	if err := s.network.GC(ctx, s.sandboxes.Live()); err != nil {
		s.log.Error("network garbage collection", "error", err)
	}
	return nil
}

func (s *Server) known(id string) bool { return s.containers.Known(id) || s.sandboxes.Known(id) }

// resume ends the stops of sandboxes that a former server has begun: their callers may be gone with it.
func (s *Server) resume(ctx context.Context) {
	var g errgroup.Group
	g.SetLimit(resumeAtOnce)
	for _, id := range s.sandboxes.Unfinished() {
		g.Go(func() error {
			s.log.Info("going on to stop a sandbox", "sandbox", id)
			if err := s.stopSandbox(ctx, id); err != nil {
				s.log.Error("stop a sandbox", "sandbox", id, "error", err)
			}
			return nil
		})
	}
	_ = g.Wait()
}

// follow carries cri-monitor's news to sandboxes and containers until ctx ends. When the line breaks it is taken up
// again; the events begin with the state of every container, so nothing is missed.
func (s *Server) follow(ctx context.Context) {
	for ctx.Err() == nil {
		if err := s.followOnce(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("lost cri-monitor, calling again", "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(retryMonitor):
		}
	}
}

func (s *Server) followOnce(ctx context.Context) error {
	events, err := s.monitor.Events(ctx, "created", "deleted") // who creates and deletes knows of it
	if err != nil {
		return err
	}
	defer events.Close()
	seen := map[string]bool{}
	for n := 0; ; n++ {
		if n == events.Known {
			s.missing(ctx, seen)
			seen = nil
		}
		e, err := events.Next(ctx)
		if err != nil {
			return err
		}
		if n < events.Known {
			seen[e.State.ID] = true
		}
		switch {
		case e.Type == "deleted":
			continue
		case e.State.Status == monitor.Running:
			s.containers.Started(e.State)
			continue
		case e.State.Status != monitor.Stopped:
			continue
		}
		switch {
		case s.containers.Exited(e.State):
		case s.sandboxes.PauseExited(e.State.ID):
			s.log.Info("pause has ended", "sandbox", e.State.ID, "exit_code", e.State.ExitCode)
		case n < events.Known: // a cri-monitor that died as it forgot it has left it to the next one, and its record is gone
			if err := s.monitor.Delete(ctx, e.State.ID); err != nil {
				s.log.Error("delete what has no record", "id", e.State.ID, "error", err)
			}
		}
	}
}
