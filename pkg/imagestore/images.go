package imagestore

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// Get implements Store.
func (s *Disk) Get(ref string) (*Image, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	r, err := s.find(ref)
	if err != nil {
		return nil, err
	}
	return s.image(r), nil
}

// List implements Store.
func (s *Disk) List() []*Image {
	s.mu.RLock()
	out := make([]*Image, 0, len(s.images))
	for _, r := range s.images {
		out = append(out, s.image(r))
	}
	s.mu.RUnlock()
	slices.SortFunc(out, func(a, b *Image) int { return strings.Compare(a.ID, b.ID) })
	return out
}

// Tag implements Store.
func (s *Disk) Tag(_ context.Context, ref, name string) error {
	named, err := parseName(name)
	if err != nil {
		return err
	}
	if _, ok := named.(reference.Digested); ok {
		return fmt.Errorf("tag %q: a digest is no tag: %w", name, errdefs.ErrInvalidArgument)
	}
	return s.update(func(images map[digest.Digest]*record) error {
		s.mu.RLock()
		r, err := s.find(ref)
		s.mu.RUnlock()
		if err != nil {
			return err
		}
		addName(images, r.ID, named.String())
		return nil
	})
}

// Pin implements Store.
func (s *Disk) Pin(_ context.Context, ref string, pinned bool) error {
	return s.update(func(images map[digest.Digest]*record) error {
		s.mu.RLock()
		r, err := s.find(ref)
		s.mu.RUnlock()
		if err != nil {
			return err
		}
		c := r.clone()
		c.Pinned = pinned
		images[r.ID] = c
		return nil
	})
}

// Remove implements Store. With the last tag of a repository the image's digest names of that repository go too, and
// with its last name the image.
func (s *Disk) Remove(ctx context.Context, ref string) error {
	var gone *record
	err := s.update(func(images map[digest.Digest]*record) error {
		s.mu.RLock()
		r, err := s.find(ref)
		s.mu.RUnlock()
		if errdefs.IsNotFound(err) {
			return errdefs.ErrNotFound
		}
		if err != nil {
			return err
		}
		c := r.clone()
		if !c.removeRef(ref) {
			images[r.ID] = c
			return nil
		}
		gone = r
		delete(images, r.ID)
		return nil
	})
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove image %s: %w", ref, err)
	}
	if gone == nil {
		return nil
	}
	s.log.Info("image store: image removed", "image", gone.ID, "tags", gone.Tags)
	if err := s.RemoveSnapshot(ctx, viewPrefix+gone.ID.Encoded()); err != nil {
		return err
	}
	err = s.sweepAll()
	s.commit.Lock()
	defer s.commit.Unlock()
	s.restock(s.tableSize)
	return err
}

// removeRef drops the name ref and reports whether the image is to go with it.
func (r *record) removeRef(ref string) bool {
	named, err := parseName(ref)
	if err != nil || !slices.Contains(r.Tags, named.String()) && !slices.Contains(r.Digests, named.String()) {
		return true // by ID
	}
	r.dropName(named.String())
	if _, ok := named.(reference.Tagged); ok {
		repo := named.Name()
		of := func(n string) bool { p := mustParse(n); return p != nil && p.Name() == repo }
		if !slices.ContainsFunc(r.Tags, of) {
			r.Digests = slices.DeleteFunc(r.Digests, of)
		}
	}
	return len(r.Tags) == 0 && len(r.Digests) == 0
}

// publish puts an image whose content is on disk into the table, or adds names to the one that is there.
func (s *Disk) publish(r *record, names []string) (*Image, error) {
	var out *record
	err := s.update(func(images map[digest.Digest]*record) error {
		n := r.clone()
		n.PulledAt = time.Now()
		if old, ok := images[r.ID]; ok {
			n.Tags, n.Digests, n.Pinned = slices.Clone(old.Tags), slices.Clone(old.Digests), old.Pinned
		}
		images[r.ID] = n
		for _, name := range names {
			addName(images, r.ID, name)
		}
		out = images[r.ID]
		return nil
	})
	if err != nil {
		return nil, err
	}
	return s.image(out), nil
}
