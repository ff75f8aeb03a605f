package runtime

import (
	"context"

	"github.com/seed-9a14075a/cri-server/internal/deepcopy"
)

// Compact puts copies in the place of the pictures at rest: see deepcopy.Replace.
func (c *Containers) Compact(ctx context.Context) {
	var ids []string
	for _, x := range c.List() {
		ids = append(ids, x.ID)
	}
	deepcopy.Replace(ctx, deepcopy.Set[Container]{IDs: ids, Lock: c.edits.Lock, Mu: &c.mu, ByID: c.byID})
}

// Condense leaves one record in each file, so that an older server can read it. It is for the end of the server, when no
// operation runs any more.
func (c *Containers) Condense(ctx context.Context) error {
	return c.records.Condense(ctx, c.edits.Lock)
}
