// Package imagetest builds small images in memory and serves them on loopback: for tests, and for programs that have no
// registry at hand. Nothing in it needs package testing.
package imagetest

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// File is one entry of a layer. The zero File is an empty regular file of root's with mode 0644.
type File struct {
	// Content of a regular file.
	Content []byte
	// Link is the target of a symbolic link; Hard makes it a hard link.
	Link string
	Hard bool
	// Mode has the permission bits, and fs.ModeDir, ModeSetuid, ModeSetgid, ModeSticky where due; 0 is 0644, and 0755 for directories.
	Mode     fs.FileMode
	UID, GID int
	Xattrs   map[string]string
	ModTime  time.Time
}

// Layer is one layer's tar stream, uncompressed.
type Layer []byte

// Files makes a layer; names that end in "/" are directories. Missing parents get an entry of their own.
func Files(files map[string]File) Layer {
	all := maps.Clone(files)
	for name := range files {
		for i := range strings.TrimSuffix(name, "/") {
			if name[i] != '/' || i == 0 {
				continue
			}
			if _, ok := files[name[:i+1]]; !ok {
				all[name[:i+1]] = File{}
			}
		}
	}
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	names := slices.Sorted(maps.Keys(all))
	// Hard links follow what they link to.
	slices.SortStableFunc(names, func(a, b string) int { return btoi(all[a].Hard) - btoi(all[b].Hard) })
	for _, name := range names {
		f := all[name]
		hdr := header(name, f)
		if err := tw.WriteHeader(hdr); err != nil {
			panic(err) // a bug of the caller's table
		}
		if hdr.Typeflag == tar.TypeReg {
			_, _ = tw.Write(f.Content)
		}
	}
	_ = tw.Close()
	return buf.Bytes()
}

func header(name string, f File) *tar.Header {
	h := &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: int64(f.Mode.Perm()), Uid: f.UID, Gid: f.GID, ModTime: f.ModTime, Format: tar.FormatPAX}
	for bit, v := range map[fs.FileMode]int64{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if f.Mode&bit != 0 {
			h.Mode |= v
		}
	}
	if f.ModTime.IsZero() {
		h.ModTime = time.Unix(1_700_000_000, 0)
	}
	switch {
	case f.Link != "" && f.Hard:
		h.Typeflag, h.Linkname = tar.TypeLink, f.Link
	case f.Link != "":
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, f.Link, 0o777
	case strings.HasSuffix(name, "/") || f.Mode.IsDir():
		h.Typeflag = tar.TypeDir
		if h.Mode == 0 {
			h.Mode = 0o755
		}
	default:
		h.Size = int64(len(f.Content))
		if h.Mode == 0 {
			h.Mode = 0o644
		}
	}
	for k, v := range f.Xattrs {
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords["SCHILY.xattr."+k] = v
	}
	return h
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// Compression of the layers of an image.
type Compression string

// The forms a layer's blob may have.
const (
	Gzip  Compression = "gzip"
	Zstd  Compression = "zstd"
	Plain Compression = "none"
)

// Image is the recipe of an image.
type Image struct {
	Layers      []Layer
	Config      ocispec.ImageConfig
	Platform    ocispec.Platform // linux/amd64 if empty
	Compression Compression      // gzip if empty
	Docker      bool             // docker's media types instead of OCI's
}

// Built is an image as blobs.
type Built struct {
	Blobs map[digest.Digest][]byte
	// Manifest is the manifest or index; its content is in Blobs. ID is the config's digest, empty for an index.
	Manifest ocispec.Descriptor
	ID       digest.Digest
	// Parsed and Image are what Manifest and the config hold.
	Parsed ocispec.Manifest
	Image  ocispec.Image
}

// Build makes the image's blobs.
func (i Image) Build() Built {
	b := Built{Blobs: map[digest.Digest][]byte{}}
	types := [3]string{ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageConfig, ocispec.MediaTypeImageLayer}
	if i.Docker {
		types = [3]string{
			"application/vnd.docker.distribution.manifest.v2+json",
			"application/vnd.docker.container.image.v1+json", "application/vnd.docker.image.rootfs.diff.tar",
		}
	}
	b.Image = ocispec.Image{Config: i.Config, Platform: i.platform(), RootFS: ocispec.RootFS{Type: "layers"}}
	b.Parsed = ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: types[0], Layers: []ocispec.Descriptor{}}
	for _, l := range i.Layers {
		b.Image.RootFS.DiffIDs = append(b.Image.RootFS.DiffIDs, digest.FromBytes(l))
		blob, suffix := i.compress(l)
		b.Parsed.Layers = append(b.Parsed.Layers, b.add(types[2]+suffix, blob))
	}
	b.Parsed.Config = b.add(types[1], marshal(b.Image))
	b.ID = b.Parsed.Config.Digest
	b.Manifest = b.add(types[0], marshal(b.Parsed))
	return b
}

func (i Image) platform() ocispec.Platform {
	if i.Platform.Architecture == "" {
		return ocispec.Platform{OS: "linux", Architecture: "amd64"}
	}
	return i.Platform
}

func (i Image) compress(l Layer) (blob []byte, suffix string) {
	var buf bytes.Buffer
	switch i.Compression {
	case Plain:
		return l, ""
	case Zstd:
		w, _ := zstd.NewWriter(&buf)
		_, _ = w.Write(l)
		_ = w.Close()
		return buf.Bytes(), "+zstd"
	}
	w := gzip.NewWriter(&buf)
	_, _ = w.Write(l)
	_ = w.Close()
	if i.Docker {
		return buf.Bytes(), ".gzip"
	}
	return buf.Bytes(), "+gzip"
}

// Index makes an index of images for several platforms.
func Index(images ...Image) Built {
	out := Built{Blobs: map[digest.Digest][]byte{}}
	idx := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, i := range images {
		b := i.Build()
		maps.Copy(out.Blobs, b.Blobs)
		d := b.Manifest
		p := i.platform()
		d.Platform = &p
		idx.Manifests = append(idx.Manifests, d)
	}
	out.Manifest = out.add(ocispec.MediaTypeImageIndex, marshal(idx))
	return out
}

// Add stores a blob and describes it.
func (b *Built) add(mediaType string, blob []byte) ocispec.Descriptor {
	d := digest.FromBytes(blob)
	b.Blobs[d] = blob
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(blob))}
}

func marshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("imagetest: %v", err))
	}
	return b
}
