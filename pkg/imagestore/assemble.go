package imagestore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// assemble brings all content of an image to disk and returns its record. release lets the layers be swept again; the
// image is to be published before.
func (s *Disk) assemble(ctx context.Context, src source, desc ocispec.Descriptor, m platformManifest, packed bool) (r *record, release func(), err error) {
	cfg, err := s.smallBlob(ctx, src, m.manifest.Config)
	if err != nil {
		return nil, nil, fmt.Errorf("config: %w", err)
	}
	r = &record{ID: m.manifest.Config.Digest, Manifest: desc, manifest: m.manifest, Packed: packed}
	if r.config, err = s.parseConfig(cfg, m.manifest); err != nil {
		return nil, nil, err
	}
	r.Manifest.Platform, r.Manifest.Annotations, r.Manifest.URLs = nil, nil, nil
	r.setSize()
	same, release := s.holdImage(r)
	if same != nil {
		return same, release, nil
	}
	hold := release // the named result is nil by the time an error is returned
	defer func() {
		if err != nil {
			hold()
		}
	}()
	at := stageOf(ctx)
	at.at("manifest and config to disk")
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := s.putBlob(desc.Digest, m.bytes); err != nil {
			return fmt.Errorf("store manifest: %w", err)
		}
		if err := s.putBlob(m.manifest.Config.Digest, cfg); err != nil {
			return fmt.Errorf("store config: %w", err)
		}
		return nil
	})
	bring := s.layer
	if packed {
		bring = s.packedLayer
	}
	for i, d := range m.manifest.Layers {
		g.Go(func() error {
			l := at.layer(i+1, len(m.manifest.Layers), d.Digest)
			defer l.done()
			if err := bring(context.WithValue(gctx, layerStageKey{}, l), src, d, r.diffIDs()[i]); err != nil {
				return fmt.Errorf("layer %d of %d, %s: %w", i+1, len(m.manifest.Layers), d.Digest, err)
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, nil, err
	}
	if err := step("image.content.placed"); err != nil {
		return nil, nil, err
	}
	at.at("sync")
	// All content and its names must be on disk before the table that relies on them.
	if err := s.sync.wait(ctx); err != nil {
		return nil, nil, fmt.Errorf("sync: %w", err)
	}
	if err := step("image.content.synced"); err != nil {
		return nil, nil, err
	}
	return r, release, nil
}

// holdImage holds the image's layers, and returns the record of the same image if the store has it whole, under this or
// another manifest, whose blobs it holds too.
func (s *Disk) holdImage(r *record) (same *record, release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	ids := slices.Clone(r.diffIDs())
	same = s.images[r.ID]
	for _, id := range ids {
		if _, ok := s.layers[id]; !ok || s.damaged[id] {
			same = nil
		}
	}
	if same != nil && !s.cfg.DiscardUnpackedLayers && slices.ContainsFunc(same.content(), s.noBlob) {
		same = nil // pulled with discarding on; now the blobs are wanted
	}
	if same != nil {
		ids = append(ids, same.content()...)
	}
	return same, s.holdLocked(ids)
}

func (s *Disk) noBlob(d digest.Digest) bool {
	_, ok := s.blobs[d]
	return !ok
}

// smallBlob returns a blob's content, checked, from the store or the source.
func (s *Disk) smallBlob(ctx context.Context, src source, d ocispec.Descriptor) ([]byte, error) {
	if b, err := s.readBlob(d); err == nil {
		return b, nil
	}
	rc, err := src.Blob(ctx, d)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	b, err := io.ReadAll(io.LimitReader(rc, d.Size+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) != d.Size || digest.FromBytes(b) != d.Digest {
		return nil, fmt.Errorf("blob %s of %d bytes: the registry sent something else: %w", d.Digest, d.Size, errdefs.ErrDataLoss)
	}
	return b, nil
}

// readBlob reads a small blob of the store and checks it.
func (s *Disk) readBlob(d ocispec.Descriptor) ([]byte, error) {
	b, err := readCapped(s.blobPath(d.Digest), max(d.Size, 0))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) != d.Size || digest.FromBytes(b) != d.Digest {
		return nil, fmt.Errorf("blob %s is damaged: %w", d.Digest, errdefs.ErrDataLoss)
	}
	return b, nil
}

// putBlob stores a small blob; the caller syncs before an image relies on it.
func (s *Disk) putBlob(d digest.Digest, b []byte) error {
	if _, err := s.readBlob(ocispec.Descriptor{Digest: d, Size: int64(len(b))}); err == nil {
		return nil
	}
	tmp := s.path("ingest", randomName())
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer os.Remove(tmp)
	_, err = f.Write(b)
	if err == nil && s.inTable(d) { // it replaces a damaged one
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return s.moveBlobIn(tmp, d)
}

// moveBlobIn gives a finished and synced file its place among the blobs.
func (s *Disk) moveBlobIn(tmp string, d digest.Digest) error {
	n, err := allocated(tmp)
	if err != nil {
		return err
	}
	s.rename.Lock()
	defer s.rename.Unlock()
	if err := os.Rename(tmp, s.blobPath(d)); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if old, ok := s.blobs[d]; ok {
		s.count(-old.allocated, -1)
	}
	s.blobs[d] = blobFile{allocated: n}
	s.count(n, 1)
	return nil
}

// moveLayerIn does so for a layer unpacked in dir.
func (s *Disk) moveLayerIn(dir string, l *layer) error {
	var err error
	if l.frameBytes, l.frameInodes, err = frame(dir); err != nil {
		return err
	}
	s.rename.Lock()
	defer s.rename.Unlock()
	s.mu.RLock()
	old, have := s.layers[l.DiffID]
	damaged, used := s.damaged[l.DiffID], s.snapshotsUse(l.DiffID)
	s.mu.RUnlock()
	switch {
	case have && !damaged:
		return nil // the same layer came by another blob meanwhile
	case have && used:
		// Mounted, perhaps: each damaged file is replaced, the directory stays what it is.
		if err := s.healLayer(dir, l); err != nil {
			return err
		}
	default:
		if err := s.moveIn(dir, s.layerPath(l.DiffID)); err != nil {
			return err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if have {
		s.count(-old.Bytes-old.frameBytes, -old.Inodes-old.frameInodes)
	}
	delete(s.damaged, l.DiffID)
	s.layers[l.DiffID] = l
	s.count(l.Bytes+l.frameBytes, l.Inodes+l.frameInodes)
	return nil
}

// frame counts a layer's directory without its files.
func frame(dir string) (bytes, inodes int64, err error) {
	names := []string{dir, filepath.Join(dir, "layer.json"), filepath.Join(dir, "marks.json"), filepath.Join(dir, "files")}
	for _, name := range names {
		n, err := allocated(name)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, 0, err
		}
		bytes += n
		inodes++
	}
	return bytes, inodes, nil
}
