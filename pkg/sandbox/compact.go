package sandbox

import (
	"context"

	"github.com/seed-9a14075a/cri-server/internal/deepcopy"
)

// Compact puts copies in the place of the pictures at rest: see deepcopy.Replace.
func (s *Sandboxes) Compact(ctx context.Context) {
	var ids []string
	for _, x := range s.List() {
		ids = append(ids, x.ID)
	}
	deepcopy.Replace(ctx, deepcopy.Set[Sandbox]{IDs: ids, Lock: s.edits.Lock, Mu: &s.mu, ByID: s.byID})
}

// Condense leaves one record in each file, so that an older server can read it. It is for the end of the server, when no
// operation runs any more.
func (s *Sandboxes) Condense(ctx context.Context) error { return s.records.Condense(ctx, s.edits.Lock) }
