package runtime

import (
	"context"

	"github.com/seed-9a14075a/cri-server/internal/deepcopy"
)

// Compact puts copies in the place of the pictures at rest. What stays of an operation lies among what it has thrown away, in
// pages that the collector can then not give back: after a few hundred pods more than half of them are holes. The copies lie
// side by side, and share their strings. Nobody can tell a copy from what it is of.
func (c *Containers) Compact(ctx context.Context) {
	var copier deepcopy.Copier
	for _, ctr := range c.List() {
		if ctx.Err() != nil {
			return
		}
		c.compact(ctx, &copier, ctr.ID)
	}
}

func (c *Containers) compact(ctx context.Context, copier *deepcopy.Copier, id string) {
	unlock, err := c.edits.Lock(ctx, id)
	if err != nil {
		return
	}
	defer unlock()
	c.mu.RLock()
	old := c.byID[id]
	c.mu.RUnlock()
	if old == nil {
		return
	}
	next, err := deepcopy.Of(copier, old)
	if err != nil {
		return // the old one serves
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byID[id] == old {
		c.byID[id] = next
	}
}
