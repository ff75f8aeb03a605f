package cri

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/seed-9a14075a/cri-server/pkg/admin"
	"github.com/seed-9a14075a/cri-server/pkg/cgroupdriver"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/monitor"
)

// garbage is something that no record stands for, and how it is taken down; nil: together with the rest of its kind.
type garbage struct {
	admin.Garbage
	remove func(context.Context) error
}

const (
	whyNoContainer = "no container or sandbox of that id has a record"
	whyNoSandbox   = "no sandbox of that id has a record"
	whyUnused      = "no image, container or transfer needs it"
)

// strays finds what was left by servers that died, or by removals that were cut short: containers that cri-monitor holds,
// cgroups marked as this server's, snapshots, pods' files and mounts. Everything is listed before the records are asked:
// what is made meanwhile has its record first.
func (s *Server) strays(held []monitor.State) (found []garbage, _ error) {
	var errs []error
	add := func(kind, name, why string, remove func(context.Context) error) {
		found = append(found, garbage{admin.Garbage{Kind: kind, Name: name, Why: why}, remove})
	}
	for _, st := range held {
		if !s.known(st.ID) {
			name := st.ID
			if st.Pid != 0 {
				name = fmt.Sprintf("%s (pid %d)", st.ID, st.Pid)
			}
			add("processes", name, whyNoContainer, func(ctx context.Context) error { return s.monitor.Delete(ctx, st.ID) })
		}
	}
	paths, err := s.cgroups.List()
	errs = append(errs, err)
	for _, p := range paths {
		if !s.known(cgroupdriver.ID(p)) {
			add("cgroup", p, whyNoContainer, func(ctx context.Context) error { return s.cgroups.Delete(ctx, p) })
		}
	}
	for _, key := range s.images.Snapshots() {
		if !s.containers.OwnsSnapshot(key) {
			add("snapshot", key, "no container of that id has a record", func(ctx context.Context) error { return s.images.RemoveSnapshot(ctx, key) })
		}
	}
	dirs, err := s.sandboxes.StrayFiles()
	errs = append(errs, err)
	for _, dir := range dirs {
		add("files", dir, whyNoSandbox, func(context.Context) error { return s.sandboxes.RemoveStrayFiles(dir) })
	}
	mounts, err := s.containers.StrayMounts()
	errs = append(errs, err)
	for _, dir := range mounts {
		add("mounts", dir, "no container that is being made needs them", func(context.Context) error { return s.containers.RemoveStrayMounts(dir) })
	}
	return found, errors.Join(errs...)
}

// Collect finds what no record stands for and, unless dry, takes it down. What can't be taken down is in the list with its
// error. The error is of things that could not even be listed; the others are in the list all the same.
func (s *Server) Collect(ctx context.Context, dry bool) ([]admin.Garbage, error) {
	held, err := s.monitor.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask cri-monitor for its containers: %w", err)
	}
	found, err := s.strays(held)
	errs := []error{err}
	net, err := s.network.Garbage(ctx, s.sandboxes.Live())
	errs = append(errs, err)
	for _, g := range net {
		found = append(found, garbage{Garbage: admin.Garbage{Kind: g.Kind, Name: g.Name, Why: whyNoSandbox + ": " + g.ID}})
	}
	for _, name := range s.images.Garbage() {
		kind, _, _ := strings.Cut(name, "/")
		found = append(found, garbage{Garbage: admin.Garbage{Kind: strings.TrimSuffix(kind, "s"), Name: name, Why: whyUnused}})
	}
	if !dry {
		s.takeDown(ctx, found)
		errs = append(errs, s.network.GC(ctx, s.sandboxes.Live()), s.images.Sweep())
	}
	list := make([]admin.Garbage, 0, len(found))
	for _, g := range found {
		list = append(list, g.Garbage)
	}
	slices.SortStableFunc(list, func(a, b admin.Garbage) int { return strings.Compare(a.Kind+" "+a.Name, b.Kind+" "+b.Name) })
	return list, errors.Join(errs...)
}

// takeDown goes on after an error, which is noted with its thing.
func (s *Server) takeDown(ctx context.Context, found []garbage) {
	for i, g := range found {
		log := s.log.With("kind", g.Kind, "name", g.Name, "why", g.Why)
		if g.remove != nil {
			if err := g.remove(ctx); err != nil {
				found[i].Error = err.Error()
				log.Error("garbage can't be taken down", "error", err)
				continue
			}
		}
		log.Info("garbage taken down")
	}
}
