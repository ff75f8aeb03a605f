package archive

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Export is one image to write.
type Export struct {
	// Names are full references with a tag; an image without any is written unnamed.
	Names      []string
	Descriptor ocispec.Descriptor
	Manifest   ocispec.Manifest
}

// Write streams an OCI image layout with docker's manifest.json to w. open returns a blob's content.
func Write(ctx context.Context, w io.Writer, images []Export, open func(digest.Digest) (io.ReadCloser, error)) error {
	tw := tar.NewWriter(w)
	if err := document(tw, "oci-layout", ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}); err != nil {
		return err
	}
	idx := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	saved := []savedImage{}
	done := map[digest.Digest]bool{}
	for _, im := range images {
		list := append([]ocispec.Descriptor{im.Descriptor, im.Manifest.Config}, im.Manifest.Layers...)
		for _, d := range list {
			if done[d.Digest] {
				continue
			}
			done[d.Digest] = true
			if err := blob(ctx, tw, d, open); err != nil {
				return fmt.Errorf("blob %s: %w", d.Digest, err)
			}
		}
		idx.Manifests = append(idx.Manifests, described(im)...)
		s := savedImage{Config: blobName(im.Manifest.Config.Digest), RepoTags: im.Names, Layers: []string{}}
		for _, l := range im.Manifest.Layers {
			s.Layers = append(s.Layers, blobName(l.Digest))
		}
		saved = append(saved, s)
	}
	if err := document(tw, "index.json", idx); err != nil {
		return err
	}
	if err := document(tw, "manifest.json", saved); err != nil {
		return err
	}
	return tw.Close()
}

// described is one descriptor per name, as containerd and docker write it.
func described(im Export) []ocispec.Descriptor {
	if len(im.Names) == 0 {
		return []ocispec.Descriptor{im.Descriptor}
	}
	var out []ocispec.Descriptor
	for _, n := range im.Names {
		d := im.Descriptor
		d.Annotations = maps.Clone(d.Annotations)
		if d.Annotations == nil {
			d.Annotations = map[string]string{}
		}
		d.Annotations[annotationName] = n
		d.Annotations[ocispec.AnnotationRefName] = n
		out = append(out, d)
	}
	return slices.Clip(out)
}

func blobName(d digest.Digest) string { return "blobs/" + d.Algorithm().String() + "/" + d.Encoded() }

func header(name string, size int64) *tar.Header {
	return &tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: size, Format: tar.FormatPAX}
}

func document(tw *tar.Writer, name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := tw.WriteHeader(header(name, int64(len(b)))); err != nil {
		return err
	}
	_, err = tw.Write(b)
	return err
}

func blob(ctx context.Context, tw *tar.Writer, d ocispec.Descriptor, open func(digest.Digest) (io.ReadCloser, error)) error {
	rc, err := open(d.Digest)
	if err != nil {
		return err
	}
	defer rc.Close()
	if err := tw.WriteHeader(header(blobName(d.Digest), d.Size)); err != nil {
		return err
	}
	n, err := io.Copy(tw, contextReader{ctx, rc})
	if err == nil && n != d.Size || errors.Is(err, tar.ErrWriteTooLong) {
		return fmt.Errorf("%d bytes instead of %d: %w", n, d.Size, errdefs.ErrDataLoss)
	}
	return err
}
