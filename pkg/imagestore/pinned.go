package imagestore

import (
	"fmt"
	"path"
	"slices"

	"github.com/containerd/errdefs"
)

// SetPinned replaces the patterns of names whose images are pinned, whatever Pin said: full names with path.Match's
// wildcards, such as "registry.k8s.io/pause:*" ("*" matches no "/"). It takes effect at once.
func (s *Disk) SetPinned(patterns []string) error {
	for _, p := range patterns {
		if _, err := path.Match(p, ""); err != nil {
			return fmt.Errorf("pinned image %q: %w: %w", p, err, errdefs.ErrInvalidArgument)
		}
	}
	patterns = slices.Clone(patterns)
	s.pinned.Store(&patterns)
	return nil
}

// isPinned reports whether an image is kept, by record or by configuration.
func (s *Disk) isPinned(r *record) bool {
	if r.Pinned {
		return true
	}
	patterns := s.pinned.Load()
	if patterns == nil {
		return false
	}
	for _, p := range *patterns {
		for _, name := range slices.Concat(r.Tags, r.Digests) {
			if ok, _ := path.Match(p, name); ok { // checked by SetPinned
				return true
			}
		}
	}
	return false
}

// image is a record as callers see it.
func (s *Disk) image(r *record) *Image {
	i := r.image()
	i.Pinned = s.isPinned(r)
	return i
}
