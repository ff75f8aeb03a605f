package imagestore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// ImportPacked implements Store: Import that stores the layers' blobs and unpacks none, for a node image that is built where
// nothing can be unpacked, or is to stay small. The layers are unpacked when the first container of the image is made.
func (s *Disk) ImportPacked(ctx context.Context, r io.Reader) ([]*Image, error) {
	return s.importArchive(ctx, r, true)
}

// packedLayer makes sure that the blob of a layer is stored, or the layer unpacked.
func (s *Disk) packedLayer(ctx context.Context, src source, d ocispec.Descriptor, diffID digest.Digest) error {
	if s.haveLayer(d.Digest, diffID) {
		return nil
	}
	_, _, err := s.layerF.do(ctx, s.life, &s.running, "packed "+string(d.Digest), func(ctx context.Context) (struct{}, error) {
		return struct{}{}, s.bringBlob(ctx, src, d)
	})
	return err
}

// bringBlob fetches and checks a layer's blob.
func (s *Disk) bringBlob(ctx context.Context, src source, d ocispec.Descriptor) error {
	if err := s.slots.Acquire(ctx, 1); err != nil {
		return context.Cause(ctx)
	}
	defer s.slots.Release(1)
	s.mu.RLock()
	_, have := s.blobs[d.Digest]
	s.mu.RUnlock()
	if have && s.checkBlob(d.Digest, d.Size, true) == "" {
		return nil
	}
	dir, err := s.ingestDir()
	if err != nil {
		return err
	}
	defer func() { _ = s.remove(dir) }()
	body, err := src.Blob(ctx, d)
	if err != nil {
		return fmt.Errorf("fetch: %w", err)
	}
	defer body.Close()
	run := pipeline{desc: d, body: body, keep: filepath.Join(dir, "blob"), wrote: s.sync.wrote, received: func(int64) {}}
	out := newPipe()
	done := make(chan error, 1)
	go func() { // ends with the body
		err := run.receive(out)
		out.closeWrite(err)
		done <- err
	}()
	for {
		c, err := out.next()
		if err != nil {
			break
		}
		recycle(c.buf)
	}
	if err := <-done; err != nil {
		return fmt.Errorf("fetch: %w", err)
	}
	if s.inTable(d.Digest) {
		if err := s.sync.wait(ctx); err != nil {
			return fmt.Errorf("sync: %w", err)
		}
	}
	if err := s.moveBlobIn(run.keep, d.Digest); err != nil {
		return fmt.Errorf("store blob: %w", err)
	}
	return step("image.packed.stored")
}

// unpackImage unpacks the layers of a packed image. ErrDataLoss if a blob turns out to be something else than its digest says.
func (s *Disk) unpackImage(ctx context.Context, id digest.Digest) error {
	_, _, err := s.unpackF.do(ctx, s.life, &s.running, string(id), func(ctx context.Context) (struct{}, error) {
		return struct{}{}, s.doUnpackImage(ctx, id)
	})
	if err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	return nil
}

// unpacked unpacks the image ref if it is packed.
func (s *Disk) unpacked(ctx context.Context, ref string) error {
	s.mu.RLock()
	r, err := s.find(ref)
	s.mu.RUnlock()
	if err != nil || !r.Packed { // who comes next says what is wrong
		return nil
	}
	return s.unpackImage(ctx, r.ID)
}

func (s *Disk) doUnpackImage(ctx context.Context, id digest.Digest) error {
	s.mu.Lock()
	r, ok := s.images[id]
	if !ok || !r.Packed {
		s.mu.Unlock()
		return nil
	}
	release := s.holdLocked(append(r.content(), r.diffIDs()...))
	s.mu.Unlock()
	defer release()
	if err := s.complete(ctx, noSource{}, r); err != nil {
		if errdefs.IsNotFound(err) { // a blob was not what its digest says, and went
			err = fmt.Errorf("%s: pull or import the image again: %w", err.Error(), errdefs.ErrDataLoss)
		}
		return err
	}
	if err := s.update(func(images map[digest.Digest]*record) error {
		if have, ok := images[id]; ok {
			c := have.clone()
			c.Packed = false
			images[id] = c
		}
		return nil
	}); err != nil {
		return err
	}
	s.log.Info("image store: image unpacked", "image", id, "layers", len(r.manifest.Layers))
	if !s.cfg.DiscardUnpackedLayers {
		return nil
	}
	return s.discardBlobs(r)
}

// discardBlobs drops the blobs of r's layers that no packed image needs.
func (s *Disk) discardBlobs(r *record) error {
	s.mu.RLock()
	needed := map[digest.Digest]bool{}
	for _, o := range s.images {
		for _, l := range o.manifest.Layers {
			needed[l.Digest] = needed[l.Digest] || o.Packed
		}
	}
	s.mu.RUnlock()
	var err error
	for _, l := range r.manifest.Layers {
		if needed[l.Digest] {
			continue
		}
		if derr := s.dropBlob(l.Digest); derr != nil && !errors.Is(derr, os.ErrNotExist) {
			err = errors.Join(err, derr)
		}
	}
	return err
}

// hasLayers tells whether all layers of r are there, unpacked or, of a packed image, as blobs. The caller holds mu or is alone.
func (s *Disk) hasLayers(r *record) error {
	for i, id := range r.diffIDs() {
		_, unpacked := s.layers[id]
		_, blob := s.blobs[r.manifest.Layers[i].Digest]
		if !unpacked && !(r.Packed && blob) {
			return fmt.Errorf("layer %s is missing or damaged: %w", id, errdefs.ErrDataLoss)
		}
	}
	return nil
}
