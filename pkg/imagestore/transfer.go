package imagestore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"github.com/seed-9a14075a/cri-server/pkg/imagestore/archive"
)

// linker is a source whose blobs are files on the store's file system.
type linker interface {
	Link(d digest.Digest, name string) error
}

// Import implements Store. The archive is spooled below Root first. An image for other platforms only is left out
// when the archive holds others; an archive with none for this one is ErrNotFound.
func (s *Disk) Import(ctx context.Context, r io.Reader) ([]*Image, error) {
	return s.importArchive(ctx, r, false)
}

func (s *Disk) importArchive(ctx context.Context, r io.Reader, packed bool) ([]*Image, error) {
	if s.life.Err() != nil {
		return nil, fmt.Errorf("import: %w", errClosed)
	}
	s.running.Add(1)
	defer s.running.Done()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.life, func() { cancel(errClosed) })()
	dir, err := s.ingestDir()
	if err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	defer func() { _ = s.remove(dir) }()
	l := s.cfg.Limits
	a, err := archive.Read(ctx, r, dir, archive.Limits{Bytes: l.Archive, Entries: l.ArchiveEntries, Document: l.Config})
	if err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	var images []*Image
	var left, failed error
	for _, im := range a.Images {
		img, err := s.importImage(ctx, a, im, packed)
		switch {
		case err == nil:
			images = append(images, img)
		case errdefs.IsNotFound(err) || errdefs.IsFailedPrecondition(err):
			left = errors.Join(left, err)
			s.log.Warn("image store: image of an archive left out", "names", im.Names, "error", err)
		default:
			failed = errors.Join(failed, fmt.Errorf("%s: %w", im.Descriptor.Digest, err))
		}
	}
	if failed == nil && len(images) == 0 {
		failed = left
	}
	if failed != nil {
		return images, fmt.Errorf("import: %w", failed)
	}
	return images, nil
}

func (s *Disk) importImage(ctx context.Context, a *archive.Archive, im archive.Image, packed bool) (*Image, error) {
	var names []string
	for _, n := range im.Names {
		named, err := parseName(n)
		if err != nil {
			return nil, err
		}
		names = append(names, named.String())
		if _, ok := named.(reference.Tagged); ok && im.Original {
			byDigest, err := reference.WithDigest(reference.TrimNamed(named), im.Descriptor.Digest)
			if err != nil {
				return nil, err
			}
			names = append(names, byDigest.String())
		}
	}
	desc, body, err := a.Manifest(ctx, im.Descriptor.Digest.String(), s.cfg.Limits.Manifest)
	if err != nil {
		return nil, err
	}
	if desc.MediaType == "" {
		desc.MediaType = im.Descriptor.MediaType
	}
	desc, m, err := s.choose(ctx, a, desc, body)
	if err != nil {
		return nil, err
	}
	return s.store(ctx, a, desc, m, names, packed)
}

// Export implements Store. ErrFailedPrecondition for an image whose layer blobs were discarded.
func (s *Disk) Export(ctx context.Context, w io.Writer, refs ...string) error {
	var out []archive.Export
	for _, ref := range refs {
		e, release, err := s.exported(ref)
		if err != nil {
			return fmt.Errorf("export: %w", err)
		}
		defer release()
		out = append(out, e)
	}
	open := func(d digest.Digest) (io.ReadCloser, error) { return os.Open(s.blobPath(d)) }
	if err := archive.Write(ctx, w, out, open); err != nil {
		return fmt.Errorf("export: %w", err)
	}
	return nil
}

// exported finds an image and holds its blobs. A reference by tag exports that name, one by ID all of them.
func (s *Disk) exported(ref string) (archive.Export, func(), error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := s.find(ref)
	if err != nil {
		return archive.Export{}, nil, err
	}
	for _, d := range r.content() {
		if _, ok := s.blobs[d]; !ok {
			return archive.Export{}, nil, fmt.Errorf("%s: blob %s was discarded after unpacking: pull the image with discarding off first: %w", ref, d, errdefs.ErrFailedPrecondition)
		}
	}
	names := r.Tags
	if named, err := parseName(ref); err == nil && s.names[named.String()] == r.ID {
		names = nil
		if _, ok := named.(reference.Tagged); ok {
			names = []string{named.String()}
		}
	}
	return archive.Export{Names: names, Descriptor: r.Manifest, Manifest: r.manifest}, s.holdLocked(r.content()), nil
}
