package imagestore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/imagestore/unpack"
)

// Problem is something in the store that is not what it was when it was stored.
type Problem struct {
	// Kind is "blob" or "layer"; Digest is the blob's digest or the layer's diff ID.
	Kind   string        `json:"kind"`
	Digest digest.Digest `json:"digest"`
	// Path is the file within a layer, empty where all of it is meant.
	Path string `json:"path,omitempty"`
	What string `json:"what"`
	// Images are the IDs of the images that need it.
	Images []string `json:"images,omitempty"`
}

// Report is what Verify found.
type Report struct {
	Blobs    int       `json:"blobs"`
	Layers   int       `json:"layers"`
	Problems []Problem `json:"problems"`
	// Repaired and Dropped are Repair's: digests that are whole again, and images that are listed no more since no source
	// had what they need.
	Repaired []digest.Digest `json:"repaired,omitempty"`
	Dropped  []string        `json:"dropped,omitempty"`
}

// maxProblems bounds what is reported of one layer.
const maxProblems = 100

// Verify compares content with its digests and unpacked layers with the manifests of their files: of the named images, or
// of the whole store. Quick compares sizes, types, owners and modes only and reads no content. The store stays in
// use; what is removed meanwhile is no problem.
func (s *Disk) Verify(ctx context.Context, quick bool, refs ...string) (*Report, error) {
	blobs, layers, release, err := s.parts(refs)
	if err != nil {
		return nil, fmt.Errorf("verify: %w", err)
	}
	defer release()
	r := &Report{Blobs: len(blobs), Layers: len(layers), Problems: []Problem{}}
	for d, size := range blobs {
		if err := ctx.Err(); err != nil {
			return r, context.Cause(ctx)
		}
		if what := s.checkBlob(d, size, quick); what != "" {
			r.Problems = append(r.Problems, Problem{Kind: "blob", Digest: d, What: what})
		}
	}
	for _, id := range layers {
		found, err := s.checkLayer(ctx, id, quick)
		if err != nil {
			return r, err
		}
		r.Problems = append(r.Problems, found...)
	}
	slices.SortFunc(r.Problems, func(a, b Problem) int {
		return strings.Compare(a.Kind+string(a.Digest)+a.Path, b.Kind+string(b.Digest)+b.Path)
	})
	s.nameUsers(r.Problems)
	return r, nil
}

// parts are the blobs, with their sizes where they are known (else -1), and layers of images, held.
func (s *Disk) parts(refs []string) (blobs map[digest.Digest]int64, layers []digest.Digest, release func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	blobs = map[digest.Digest]int64{}
	var records []*record
	if len(refs) == 0 {
		for d := range s.blobs {
			blobs[d] = -1
		}
		for id := range s.layers {
			layers = append(layers, id)
		}
		for _, r := range s.images {
			records = append(records, r)
		}
	}
	for _, ref := range refs {
		r, err := s.find(ref)
		if err != nil {
			return nil, nil, nil, err
		}
		records = append(records, r)
	}
	for _, r := range records {
		blobs[r.Manifest.Digest], blobs[r.manifest.Config.Digest] = r.Manifest.Size, r.manifest.Config.Size
		for _, l := range r.manifest.Layers {
			if _, ok := s.blobs[l.Digest]; ok || r.Packed || !s.cfg.DiscardUnpackedLayers {
				blobs[l.Digest] = l.Size
			}
		}
		for _, id := range r.diffIDs() {
			if _, ok := s.layers[id]; len(refs) > 0 && (ok || !r.Packed) {
				layers = append(layers, id)
			}
		}
	}
	slices.Sort(layers)
	layers = slices.Compact(layers)
	held := slices.Clone(layers)
	for d := range blobs {
		held = append(held, d)
	}
	return blobs, layers, s.holdLocked(held), nil
}

// checkBlob says what is wrong with a blob, "" for nothing.
func (s *Disk) checkBlob(d digest.Digest, size int64, quick bool) string {
	f, err := os.Open(s.blobPath(d))
	if err != nil {
		return plain(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return plain(err)
	}
	if size >= 0 && st.Size() != size {
		return fmt.Sprintf("%d bytes instead of %d", st.Size(), size)
	}
	if quick {
		return ""
	}
	_ = unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED) // what the disk has is to be checked, not what memory has
	sum := sha256.New()
	buf := newBuffer()
	defer recycle(buf)
	if _, err := io.CopyBuffer(struct{ io.Writer }{sum}, struct{ io.Reader }{f}, buf); err != nil {
		return plain(err)
	}
	if digest.NewDigest(digest.SHA256, sum) != d {
		return "content differs"
	}
	return ""
}

// plain is an error without the path, which the problem names.
func plain(err error) string {
	if os.IsNotExist(err) {
		return "missing"
	}
	return err.Error()
}

func (s *Disk) checkLayer(ctx context.Context, id digest.Digest, quick bool) ([]Problem, error) {
	var out []Problem
	add := func(path unpack.Path, what string) {
		if len(out) < maxProblems {
			out = append(out, Problem{Kind: "layer", Digest: id, Path: string(path), What: what})
		}
	}
	s.mu.RLock()
	l, ok := s.layers[id]
	s.mu.RUnlock()
	if !ok {
		add("", "missing")
		return out, nil
	}
	dir := s.layerPath(id)
	err := checkTree(ctx, dir, l, !quick, add)
	if ctx.Err() != nil {
		return out, context.Cause(ctx)
	}
	if err != nil {
		add("", err.Error())
	}
	return out, nil
}

// maxFiles bounds a layer's manifest.
const maxFiles = 4 << 30

// checkTree compares the layer in dir with its records.
func checkTree(ctx context.Context, dir string, l *layer, deep bool, report func(unpack.Path, string)) error {
	if l.Files == "" {
		return fmt.Errorf("was stored without a manifest of its files: %w", errdefs.ErrNotFound)
	}
	m, err := l.marks(dir)
	if err != nil {
		return err
	}
	b, err := readCapped(filepath.Join(dir, "files"), maxFiles)
	if err != nil {
		return err
	}
	if digest.FromBytes(b) != l.Files {
		return fmt.Errorf("the manifest of its files is damaged: %w", errdefs.ErrDataLoss)
	}
	fd, err := unix.Open(filepath.Join(dir, "fs"), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unpack.Check(ctx, fd, bytes.NewReader(b), m, deep, report)
}

// nameUsers fills in which images need what is damaged.
func (s *Disk) nameUsers(problems []Problem) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for i := range problems {
		p := &problems[i]
		for id, r := range s.images {
			if slices.Contains(r.diffIDs(), p.Digest) || slices.Contains(r.content(), p.Digest) {
				p.Images = append(p.Images, id.String())
			}
		}
		slices.Sort(p.Images)
	}
}
