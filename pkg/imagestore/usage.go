package imagestore

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
)

// ImageUsage is what one image takes on disk, in bytes as allocated.
type ImageUsage struct {
	ID     string   `json:"id"`
	Names  []string `json:"names"`
	Pinned bool     `json:"pinned,omitempty"`
	// Blobs is compressed content, Layers unpacked files; Shared is the part of both that other images need too, so
	// removing the image frees the rest.
	Blobs  int64 `json:"blobs"`
	Layers int64 `json:"layers"`
	Shared int64 `json:"shared"`
	// Snapshots is how many containers' root file systems are made of it.
	Snapshots int `json:"snapshots"`
}

// DiskUsage tells what each image takes, the largest first. It answers from memory.
func (s *Disk) DiskUsage() []ImageUsage {
	s.mu.RLock()
	defer s.mu.RUnlock()
	users := map[digest.Digest]int{}
	for _, r := range s.images {
		for _, d := range r.unique() {
			users[d]++
		}
	}
	snapshots := map[digest.Digest]int{}
	for _, sn := range s.snapshots {
		if !strings.HasPrefix(sn.Key, viewPrefix) {
			snapshots[sn.Image]++
		}
	}
	var out []ImageUsage
	for id, r := range s.images {
		u := ImageUsage{ID: id.String(), Names: slices.Concat(r.Tags, r.Digests), Pinned: s.isPinned(r), Snapshots: snapshots[id]}
		for _, d := range r.unique() {
			n := s.blobs[d].allocated
			u.Blobs += n
			if l, ok := s.layers[d]; ok {
				n += l.Bytes + l.frameBytes
				u.Layers += l.Bytes + l.frameBytes
			}
			if users[d] > 1 {
				u.Shared += n
			}
		}
		out = append(out, u)
	}
	slices.SortFunc(out, func(a, b ImageUsage) int {
		if d := b.Blobs + b.Layers - a.Blobs - a.Layers; d != 0 {
			return int(max(-1, min(1, d)))
		}
		return strings.Compare(a.ID, b.ID)
	})
	return out
}

// unique are all digests of a record, blobs and diff IDs, once each. An uncompressed layer has one digest for both.
func (r *record) unique() []digest.Digest {
	m := map[digest.Digest]struct{}{}
	for _, d := range slices.Concat(r.content(), r.diffIDs()) {
		m[d] = struct{}{}
	}
	return slices.Collect(maps.Keys(m))
}

// Pruned is what Prune removed.
type Pruned struct {
	Images []string `json:"images"`
	// Bytes is the disk space freed.
	Bytes uint64 `json:"bytes"`
}

// Prune removes images that no container uses and that are not pinned: those without a tag, or with all every one.
// Content that nothing needs goes with them.
func (s *Disk) Prune(ctx context.Context, all bool) (Pruned, error) {
	before := s.Usage().Bytes
	p := Pruned{Images: []string{}}
	var gone []digest.Digest
	err := s.update(func(images map[digest.Digest]*record) error {
		s.mu.RLock()
		defer s.mu.RUnlock()
		used := map[digest.Digest]bool{}
		for _, sn := range s.snapshots {
			if !strings.HasPrefix(sn.Key, viewPrefix) {
				used[sn.Image] = true
			}
		}
		for id, r := range images {
			if s.isPinned(r) || used[id] || len(r.Tags) > 0 && !all {
				continue
			}
			gone = append(gone, id)
			delete(images, id)
		}
		return nil
	})
	if err != nil {
		return p, fmt.Errorf("prune: %w", err)
	}
	slices.Sort(gone)
	for _, id := range gone {
		p.Images = append(p.Images, id.String())
	}
	if err := s.dropImages(ctx, gone); err != nil {
		return p, fmt.Errorf("prune: %w", err)
	}
	if len(gone) == 0 {
		if err := s.sweepAll(); err != nil {
			return p, fmt.Errorf("prune: %w", err)
		}
	}
	if after := s.Usage().Bytes; after < before {
		p.Bytes = before - after
	}
	return p, nil
}
