package sandbox

import (
	"context"

	"github.com/seed-9a14075a/cri-server/internal/deepcopy"
)

// Compact puts copies in the place of the pictures at rest. What stays of an operation lies among what it has thrown away, in
// pages that the collector can then not give back: after a few hundred pods more than half of them are holes. The copies lie
// side by side, and share their strings. Nobody can tell a copy from what it is of.
func (s *Sandboxes) Compact(ctx context.Context) {
	var copier deepcopy.Copier
	for _, sb := range s.List() {
		if ctx.Err() != nil {
			return
		}
		s.compact(ctx, &copier, sb.ID)
	}
}

func (s *Sandboxes) compact(ctx context.Context, copier *deepcopy.Copier, id string) {
	unlock, err := s.edits.Lock(ctx, id)
	if err != nil {
		return
	}
	defer unlock()
	s.mu.RLock()
	old := s.byID[id]
	s.mu.RUnlock()
	if old == nil {
		return
	}
	next, err := deepcopy.Of(copier, old)
	if err != nil {
		return // the old one serves
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byID[id] == old {
		s.byID[id] = next
	}
}
