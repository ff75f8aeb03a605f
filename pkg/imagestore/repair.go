package imagestore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/imagestore/registry"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore/unpack"
)

// Repair verifies as Verify does and makes damaged things whole: layers from their blobs where those are good, everything
// else from the registries the images came from. An image that can't be made whole is listed no more, so that the next
// pull brings it back; running containers keep what they have of it.
func (s *Disk) Repair(ctx context.Context, quick bool, refs ...string) (*Report, error) {
	r, err := s.Verify(ctx, quick, refs...)
	if err != nil || len(r.Problems) == 0 {
		return r, err
	}
	if err := s.setAside(r.Problems); err != nil {
		return r, fmt.Errorf("repair: %w", err)
	}
	var dropped []digest.Digest
	for _, id := range brokenImages(r.Problems) {
		if err := s.repairImage(ctx, id); err != nil {
			if ctx.Err() != nil {
				return r, context.Cause(ctx)
			}
			s.log.Error("image store: image can't be repaired and is listed no more", "image", id, "error", err)
			dropped = append(dropped, id)
		}
	}
	if err := s.dropImages(ctx, dropped); err != nil {
		return r, fmt.Errorf("repair: %w", err)
	}
	for _, id := range dropped {
		r.Dropped = append(r.Dropped, id.String())
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, p := range r.Problems {
		_, blob := s.blobs[p.Digest]
		_, layer := s.layers[p.Digest]
		if (blob || layer && !s.damaged[p.Digest]) && !slices.Contains(r.Repaired, p.Digest) {
			r.Repaired = append(r.Repaired, p.Digest)
		}
	}
	s.log.Info("image store: repaired", "problems", len(r.Problems), "repaired", len(r.Repaired), "images dropped", len(dropped))
	return r, nil
}

// setAside makes the store forget damaged blobs and distrust damaged layers.
func (s *Disk) setAside(problems []Problem) error {
	for _, p := range problems {
		s.log.Warn("image store: damaged", "kind", p.Kind, "digest", p.Digest, "path", p.Path, "what", p.What)
		if p.Kind == "layer" {
			s.mu.Lock()
			if _, ok := s.layers[p.Digest]; ok {
				s.damaged[p.Digest] = true
			}
			s.mu.Unlock()
			continue
		}
		if err := s.dropBlob(p.Digest); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

func brokenImages(problems []Problem) []digest.Digest {
	var out []digest.Digest
	for _, p := range problems {
		for _, id := range p.Images {
			out = append(out, digest.Digest(id))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// repairImage brings what an image lacks, from the first of its names that has it.
func (s *Disk) repairImage(ctx context.Context, id digest.Digest) error {
	s.mu.Lock()
	r, ok := s.images[id]
	if !ok {
		s.mu.Unlock()
		return nil
	}
	release := s.holdLocked(append(r.content(), r.diffIDs()...))
	s.mu.Unlock()
	defer release()
	err := s.complete(ctx, noSource{}, r) // the good blobs may be enough
	for _, name := range slices.Concat(r.Digests, r.Tags) {
		if err == nil || ctx.Err() != nil {
			break
		}
		repo, rerr := s.client.Repository(mustParse(name), registry.Credentials{})
		if rerr != nil {
			err = errors.Join(err, rerr)
			continue
		}
		if rerr := s.complete(ctx, repo, r); rerr != nil {
			err = errors.Join(err, rerr)
		} else {
			err = nil
		}
	}
	return err
}

// noSource has nothing: only what the store has is used.
type noSource struct{}

func (noSource) Manifest(context.Context, string, int64) (ocispec.Descriptor, []byte, error) {
	return ocispec.Descriptor{}, nil, errdefs.ErrNotFound
}

func (noSource) Blob(_ context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	return nil, fmt.Errorf("blob %s: %w", d.Digest, errdefs.ErrNotFound)
}

// complete makes all that r needs whole and durable.
func (s *Disk) complete(ctx context.Context, src source, r *record) error {
	if _, err := s.readBlob(r.Manifest); err != nil {
		_, b, err := src.Manifest(ctx, r.Manifest.Digest.String(), s.cfg.Limits.Manifest)
		if err != nil {
			return fmt.Errorf("manifest: %w", err)
		}
		if err := s.putBlob(r.Manifest.Digest, b); err != nil {
			return fmt.Errorf("store manifest: %w", err)
		}
	}
	b, err := s.smallBlob(ctx, src, r.manifest.Config)
	if err != nil {
		return fmt.Errorf("config: %w", err)
	}
	if err := s.putBlob(r.manifest.Config.Digest, b); err != nil {
		return fmt.Errorf("store config: %w", err)
	}
	for i, d := range r.manifest.Layers {
		if err := s.layer(ctx, src, d, r.diffIDs()[i]); err != nil {
			return fmt.Errorf("layer %d of %d, %s: %w", i+1, len(r.manifest.Layers), d.Digest, err)
		}
	}
	return s.sync.wait(ctx)
}

// dropImages takes images from the table.
func (s *Disk) dropImages(ctx context.Context, ids []digest.Digest) error {
	if len(ids) == 0 {
		return nil
	}
	err := s.update(func(images map[digest.Digest]*record) error {
		for _, id := range ids {
			delete(images, id)
		}
		return nil
	})
	for _, id := range ids {
		err = errors.Join(err, s.RemoveSnapshot(ctx, viewPrefix+id.Encoded()))
	}
	return errors.Join(err, s.sweepAll())
}

// healPasses: replacing a file may part it from its hard links, which the next pass sees.
const healPasses = 3

// healLayer replaces what is damaged in a layer that containers may have mounted by what a fresh copy of it, in dir, has.
// Which of the two a running container sees of a file that it has not opened yet is up to overlayfs.
func (s *Disk) healLayer(dir string, l *layer) error {
	to := s.layerPath(l.DiffID)
	for _, name := range []string{"files", "marks.json", "layer.json"} {
		if err := os.Rename(filepath.Join(dir, name), filepath.Join(to, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	var left []string
	for range healPasses {
		left = nil
		err := checkTree(s.life, to, l, true, func(p unpack.Path, what string) { left = append(left, string(p)) })
		if err != nil {
			return fmt.Errorf("heal: %w", err)
		}
		if len(left) == 0 {
			return nil
		}
		slices.Sort(left)
		if err := replacePaths(filepath.Join(dir, "fs"), filepath.Join(to, "fs"), left); err != nil {
			return fmt.Errorf("heal: %w", err)
		}
	}
	return fmt.Errorf("heal: %d files can't be put right, %q first: %w", len(left), left[0], errdefs.ErrDataLoss)
}

// replacePaths moves the sorted paths from one tree to another, and removes there what the first doesn't have.
func replacePaths(from, to string, paths []string) error {
	src, err := unix.Open(from, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(src)
	dst, err := unix.Open(to, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dst)
	var done []string
	for _, p := range paths {
		if slices.ContainsFunc(done, func(d string) bool { return strings.HasPrefix(p, d+"/") }) {
			continue // came with its directory
		}
		if err := unpack.Replace(src, dst, p); err != nil {
			return fmt.Errorf("%q: %w", p, err)
		}
		done = append(done, p)
	}
	return nil
}
