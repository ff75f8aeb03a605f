// Package archive reads and writes images as tar archives: OCI image layouts, and docker's save format in its old
// form (one directory per layer) and its present one (an OCI layout with a manifest.json beside it).
//
// Reading spools the archive's files into a directory, because what an image consists of may stand at the archive's
// end. Names in the archive are keys of a table and never paths on disk.
package archive

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Limits cap what Read takes in.
type Limits struct {
	// Bytes is the whole archive, uncompressed; Entries its number of files; Document one JSON file.
	Bytes    int64
	Entries  int
	Document int64
}

// spooled is a file of the archive.
type spooled struct {
	path   string
	digest digest.Digest
	size   int64
}

// Archive is what Read found. Its files are in the directory given to Read, which is the caller's to remove.
type Archive struct {
	// Images are what the archive names, in its order.
	Images []Image

	limits  Limits
	files   map[string]spooled
	links   map[string]string
	blobs   map[digest.Digest]spooled
	written map[digest.Digest][]byte // manifests made for docker's old format
}

// Image is one image of an archive.
type Image struct {
	// Names are references as the archive has them, not normalised.
	Names []string
	// Descriptor is of a manifest or an index, read with Manifest.
	Descriptor ocispec.Descriptor
	// Original tells that the descriptor's digest is the publisher's, not one made here.
	Original bool
}

// Read spools the archive r, which may be compressed with gzip or zstd, into dir.
func Read(ctx context.Context, r io.Reader, dir string, l Limits) (*Archive, error) {
	a := &Archive{
		limits: l, files: map[string]spooled{}, links: map[string]string{},
		blobs: map[digest.Digest]spooled{}, written: map[digest.Digest][]byte{},
	}
	plain, done, err := decompress(r)
	if err != nil {
		return nil, err
	}
	defer done()
	limited := &limitReader{r: plain, left: l.Bytes}
	tr := tar.NewReader(limited)
	buf := make([]byte, 256<<10)
	for n := 0; ; n++ {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read archive: %w", tarError(err))
		}
		if n >= l.Entries {
			return nil, fmt.Errorf("archive has more than %d entries: %w", l.Entries, errdefs.ErrResourceExhausted)
		}
		if err := a.entry(ctx, hdr, tr, filepath.Join(dir, strconv.Itoa(n)), buf); err != nil {
			return nil, fmt.Errorf("archive entry %.200q: %w", hdr.Name, err)
		}
	}
	if len(a.files) == 0 {
		return nil, fmt.Errorf("the archive is empty or no tar: %w", errdefs.ErrInvalidArgument)
	}
	return a, a.images()
}

// tarError gives errors of package tar their kind.
func tarError(err error) error {
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	return err
}

func (a *Archive) entry(ctx context.Context, hdr *tar.Header, r io.Reader, file string, buf []byte) error {
	name := path.Clean("/" + hdr.Name)[1:]
	switch hdr.Typeflag {
	case tar.TypeReg:
	case tar.TypeSymlink: // docker's old format names a layer once and links to it
		a.links[name] = path.Clean("/" + path.Join(path.Dir(name), hdr.Linkname))[1:]
		return nil
	case tar.TypeLink:
		a.links[name] = path.Clean("/" + hdr.Linkname)[1:]
		return nil
	default:
		return nil
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	sum := sha256.New()
	n, err := io.CopyBuffer(io.MultiWriter(f, sum), contextReader{ctx, r}, buf)
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	s := spooled{path: file, digest: digest.NewDigest(digest.SHA256, sum), size: n}
	if hex, ok := strings.CutPrefix(name, "blobs/sha256/"); ok && hex != s.digest.Encoded() {
		return fmt.Errorf("content has digest %s: %w", s.digest, errdefs.ErrDataLoss)
	}
	a.files[name] = s
	a.blobs[s.digest] = s
	return nil
}

// file finds a file by name, over links.
func (a *Archive) file(name string) (spooled, bool) {
	name = path.Clean("/" + name)[1:]
	for range 16 {
		if f, ok := a.files[name]; ok {
			return f, true
		}
		next, ok := a.links[name]
		if !ok {
			break
		}
		name = next
	}
	return spooled{}, false
}

// document reads a small file; nil if there is none.
func (a *Archive) document(name string) ([]byte, error) {
	f, ok := a.file(name)
	if !ok {
		return nil, nil
	}
	return a.read(f)
}

func (a *Archive) read(f spooled) ([]byte, error) {
	if f.size > a.limits.Document {
		return nil, fmt.Errorf("%d bytes, at most %d: %w", f.size, a.limits.Document, errdefs.ErrResourceExhausted)
	}
	return os.ReadFile(f.path)
}

// Manifest returns a manifest or index by digest. ErrNotFound: archives may leave out other platforms.
func (a *Archive) Manifest(_ context.Context, ref string, limit int64) (ocispec.Descriptor, []byte, error) {
	d := digest.Digest(ref)
	if b, ok := a.written[d]; ok {
		return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: d, Size: int64(len(b))}, b, nil
	}
	f, ok := a.blobs[d]
	if !ok {
		return ocispec.Descriptor{}, nil, fmt.Errorf("manifest %s is not in the archive: %w", d, errdefs.ErrNotFound)
	}
	if f.size > limit {
		return ocispec.Descriptor{}, nil, fmt.Errorf("manifest %s: %d bytes, at most %d: %w", d, f.size, limit, errdefs.ErrResourceExhausted)
	}
	b, err := os.ReadFile(f.path)
	return ocispec.Descriptor{Digest: d, Size: f.size}, b, err
}

// Blob opens a blob. ErrNotFound.
func (a *Archive) Blob(_ context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	f, ok := a.blobs[desc.Digest]
	if !ok {
		return nil, fmt.Errorf("blob %s is not in the archive: %w", desc.Digest, errdefs.ErrNotFound)
	}
	return os.Open(f.path)
}

// Link gives the spooled blob a further name, so that it need not be copied.
func (a *Archive) Link(d digest.Digest, name string) error {
	f, ok := a.blobs[d]
	if !ok {
		return errdefs.ErrNotFound
	}
	return os.Link(f.path, name)
}

func decompress(r io.Reader) (io.Reader, func(), error) {
	br := bufio.NewReaderSize(r, 256<<10)
	head, err := br.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, fmt.Errorf("read archive: %w", err)
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, nil, fmt.Errorf("read archive: %w: %w", err, errdefs.ErrInvalidArgument)
		}
		return z, func() { _ = z.Close() }, nil
	case bytes.Equal(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	}
	return br, func() {}, nil
}

type limitReader struct {
	r    io.Reader
	left int64
}

func (l *limitReader) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	if l.left -= int64(n); l.left < 0 {
		return n, fmt.Errorf("archive is too large: %w", errdefs.ErrResourceExhausted)
	}
	return n, err
}

type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}
