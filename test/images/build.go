package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"path"
	"sort"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
)

// File is one entry of a layer. A Path that ends in "/" is a directory; Link makes it a symbolic link, HardLink one more
// name of another file of the layer.
type File struct {
	Path     string
	Mode     int64 // permission bits with setuid, setgid and sticky as in tar
	UID, GID int
	Link     string
	HardLink string
	Body     []byte
}

// Media types of the two manifest families.
const (
	ociManifest    = "application/vnd.oci.image.manifest.v1+json"
	ociIndex       = "application/vnd.oci.image.index.v1+json"
	ociConfig      = "application/vnd.oci.image.config.v1+json"
	ociLayerGzip   = "application/vnd.oci.image.layer.v1.tar+gzip"
	ociLayerZstd   = "application/vnd.oci.image.layer.v1.tar+zstd"
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
	dockerLayer    = "application/vnd.docker.image.rootfs.diff.tar.gzip"
)

// Layer is a compressed layer.
type Layer struct {
	diffID digest.Digest
	body   []byte
	zstd   bool
}

// NewLayer packs files, in path order and with fixed times, so that the same files always give the same digest.
func NewLayer(files []File, useZstd bool) (*Layer, error) {
	var raw bytes.Buffer
	tw := tar.NewWriter(&raw)
	for _, f := range withParents(files) {
		h := &tar.Header{Name: f.Path, Mode: f.Mode, Uid: f.UID, Gid: f.GID, Size: int64(len(f.Body)),
			ModTime: time.Unix(1700000000, 0), Typeflag: tar.TypeReg, Format: tar.FormatPAX}
		switch {
		case f.Link != "":
			h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, f.Link, 0o777
		case f.HardLink != "":
			h.Typeflag, h.Linkname = tar.TypeLink, f.HardLink
		case strings.HasSuffix(f.Path, "/"):
			h.Typeflag = tar.TypeDir
		}
		if err := tw.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("layer: %s: %w", f.Path, err)
		}
		if _, err := tw.Write(f.Body); err != nil {
			return nil, fmt.Errorf("layer: %s: %w", f.Path, err)
		}
	}
	if err := tw.Close(); err != nil {
		return nil, fmt.Errorf("layer: %w", err)
	}
	l := &Layer{diffID: digest.FromBytes(raw.Bytes()), zstd: useZstd}
	var packed bytes.Buffer
	if useZstd {
		w, err := zstd.NewWriter(&packed, zstd.WithEncoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		if _, err := w.Write(raw.Bytes()); err != nil {
			return nil, err
		}
		if err := w.Close(); err != nil {
			return nil, err
		}
	} else {
		w, _ := gzip.NewWriterLevel(&packed, gzip.BestSpeed)
		if _, err := w.Write(raw.Bytes()); err != nil {
			return nil, err
		}
		if err := w.Close(); err != nil {
			return nil, err
		}
	}
	l.body = packed.Bytes()
	return l, nil
}

// withParents sorts the files and adds the directories that are only implied.
func withParents(files []File) []File {
	seen := map[string]bool{}
	var all []File
	for _, f := range files {
		seen[f.Path] = true
	}
	for _, f := range files {
		for d := path.Dir(strings.TrimSuffix(f.Path, "/")); d != "."; d = path.Dir(d) {
			if !seen[d+"/"] {
				seen[d+"/"] = true
				all = append(all, File{Path: d + "/", Mode: 0o755})
			}
		}
	}
	all = append(all, files...)
	sort.SliceStable(all, func(i, j int) bool {
		if a, b := all[i].HardLink != "", all[j].HardLink != ""; a != b {
			return b // a hard link comes after the file it names
		}
		return all[i].Path < all[j].Path
	})
	return all
}

// RunConfig is what an image says about running it.
type RunConfig struct {
	User       string            `json:"User,omitempty"`
	Env        []string          `json:"Env,omitempty"`
	Entrypoint []string          `json:"Entrypoint,omitempty"`
	Cmd        []string          `json:"Cmd,omitempty"`
	WorkingDir string            `json:"WorkingDir,omitempty"`
	Labels     map[string]string `json:"Labels,omitempty"`
	StopSignal string            `json:"StopSignal,omitempty"`
}

type descriptor struct {
	MediaType string        `json:"mediaType"`
	Digest    digest.Digest `json:"digest"`
	Size      int64         `json:"size"`
	Platform  *platform     `json:"platform,omitempty"`
}

type manifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        *descriptor  `json:"config,omitempty"`
	Layers        []descriptor `json:"layers,omitempty"`
	Manifests     []descriptor `json:"manifests,omitempty"`
}

// Image is a manifest with all its blobs.
type Image struct {
	Digest    digest.Digest
	mediaType string
	body      []byte
	blobs     map[digest.Digest][]byte
	children  []*Image // of an index
}

// Family chooses the manifest's media types.
type Family int

// The two families of media types.
const (
	OCI Family = iota
	Docker
)

// NewImage makes an image of layers for this platform.
func (a *Assets) NewImage(f Family, cfg RunConfig, layers ...*Layer) (*Image, error) {
	if len(cfg.Env) == 0 {
		cfg.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	}
	img := &Image{mediaType: ociManifest, blobs: map[digest.Digest][]byte{}}
	configType := ociConfig
	if f == Docker {
		img.mediaType, configType = dockerManifest, dockerConfig
	}
	m := manifest{SchemaVersion: 2, MediaType: img.mediaType}
	diffIDs := []digest.Digest{}
	for _, l := range layers {
		t := ociLayerGzip
		switch {
		case l.zstd:
			t = ociLayerZstd
		case f == Docker:
			t = dockerLayer
		}
		m.Layers = append(m.Layers, img.add(t, l.body))
		diffIDs = append(diffIDs, l.diffID)
	}
	body, err := json.Marshal(map[string]any{
		"architecture": a.platform.Architecture, "os": a.platform.OS, "created": "2023-11-14T22:13:20Z", "config": cfg,
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs},
	})
	if err != nil {
		return nil, fmt.Errorf("image config: %w", err)
	}
	config := img.add(configType, body)
	m.Config = &config
	return img.seal(m)
}

// NewIndex makes an index of image for this platform, and of the same image for one that doesn't exist.
func (a *Assets) NewIndex(image *Image) (*Image, error) {
	index := &Image{mediaType: ociIndex, children: []*Image{image}}
	own, other := a.platform, platform{Architecture: "s390x", OS: "linux"}
	d := descriptor{MediaType: image.mediaType, Digest: image.Digest, Size: int64(len(image.body)), Platform: &other}
	missing := d
	missing.Digest, d.Platform = digest.FromString("not served"), &own
	return index.seal(manifest{SchemaVersion: 2, MediaType: ociIndex, Manifests: []descriptor{missing, d}})
}

func (i *Image) add(mediaType string, body []byte) descriptor {
	d := digest.FromBytes(body)
	i.blobs[d] = body
	return descriptor{MediaType: mediaType, Digest: d, Size: int64(len(body))}
}

func (i *Image) seal(m manifest) (*Image, error) {
	body, err := json.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	i.body, i.Digest = body, digest.FromBytes(body)
	return i, nil
}
