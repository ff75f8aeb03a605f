package imagestore

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
)

// load reads what the store holds, drops images that are not whole, and removes content that nothing needs.
func (s *Disk) load() error {
	if err := s.loadBlobs(); err != nil {
		return err
	}
	if err := s.loadLayers(); err != nil {
		return err
	}
	if err := s.loadSnapshots(); err != nil {
		return err
	}
	records, err := s.readTable()
	if err != nil {
		return err
	}
	dropped := 0
	for _, r := range records {
		if r == nil {
			continue
		}
		if err := s.loadImage(r); err != nil {
			dropped++
			s.log.Error("image store: image dropped, the next pull brings it back", "image", r.ID, "tags", r.Tags, "error", err)
			continue
		}
		s.images[r.ID] = r
	}
	s.names = nameIndex(s.images)
	if dropped > 0 {
		if err := s.writeTable(s.images); err != nil {
			return err
		}
	}
	return s.sweepAll()
}

// loadImage reads the parts of a record that are in blobs, and checks that its layers are there.
func (s *Disk) loadImage(r *record) error {
	if err := checkDescriptor(r.Manifest, s.cfg.Limits.Manifest); err != nil {
		return fmt.Errorf("record: %w", err)
	}
	b, err := s.readBlob(r.Manifest)
	if err != nil {
		return fmt.Errorf("manifest: %w", err)
	}
	m, err := s.parseManifest(b)
	if err != nil {
		return err
	}
	if r.ID != m.manifest.Config.Digest {
		return fmt.Errorf("record and manifest differ: %w", errdefs.ErrDataLoss)
	}
	if b, err = s.readBlob(m.manifest.Config); err != nil {
		return fmt.Errorf("config: %w", err)
	}
	if err := json.Unmarshal(b, &r.config); err != nil {
		return fmt.Errorf("config: %w", err)
	}
	r.manifest = m.manifest
	r.setSize()
	if len(r.diffIDs()) != len(r.manifest.Layers) {
		return fmt.Errorf("configuration and manifest differ: %w", errdefs.ErrDataLoss)
	}
	return s.hasLayers(r)
}

func (s *Disk) loadBlobs() error {
	return s.eachDigest("blobs", func(id digest.Digest) error {
		n, err := allocated(s.blobPath(id))
		if err != nil {
			return err
		}
		s.blobs[id] = blobFile{allocated: n}
		s.count(n, 1)
		return nil
	})
}

func (s *Disk) loadLayers() error {
	return s.eachDigest("layers", func(id digest.Digest) error {
		l, err := s.readLayer(id)
		if err != nil {
			s.log.Error("image store: unpacked layer damaged, removed", "layer", id, "error", err)
			return removeAll(s.layerPath(id))
		}
		s.layers[id] = l
		s.count(l.Bytes+l.frameBytes, l.Inodes+l.frameInodes)
		return nil
	})
}

// eachDigest calls f for each entry of sub/sha256 that is named by a digest, and removes the others.
func (s *Disk) eachDigest(sub string, f func(digest.Digest) error) error {
	dir := s.path(sub, "sha256")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		id := digest.NewDigestFromEncoded(digest.SHA256, e.Name())
		if id.Validate() != nil {
			s.log.Warn("image store: stray file removed", "name", dir+"/"+e.Name())
			if err := removeAll(dir + "/" + e.Name()); err != nil {
				return err
			}
			continue
		}
		if err := f(id); err != nil {
			return fmt.Errorf("%s: %w", id, err)
		}
	}
	return nil
}

func (s *Disk) loadSnapshots() error {
	entries, err := os.ReadDir(s.path("snapshots"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		key := e.Name()
		if checkKey(key) != nil || !e.IsDir() {
			if err := removeAll(s.path("snapshots", key)); err != nil {
				return err
			}
			continue
		}
		r, err := s.readSnapshot(key)
		if err != nil {
			s.log.Error("image store: snapshot record unreadable, no layer is removed until it is gone", "snapshot", key, "error", err)
			r = &snapshotRecord{Key: key, damaged: true}
		}
		s.snapshots[key] = r
	}
	return nil
}

func (s *Disk) readSnapshot(key string) (*snapshotRecord, error) {
	b, err := readCapped(s.path("snapshots", key, recordName), 1<<20)
	if err != nil {
		return nil, err
	}
	r := &snapshotRecord{}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, err
	}
	if r.Key != key {
		return nil, errors.New("record is of snapshot " + strings.ToValidUTF8(r.Key, "?"))
	}
	for _, id := range r.Layers {
		if err := id.Validate(); err != nil {
			return nil, err
		}
	}
	return r, nil
}
