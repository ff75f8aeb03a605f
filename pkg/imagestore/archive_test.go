package imagestore_test

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore/imagetest"
)

type member struct {
	name, link string
	content    []byte
}

func tarOf(t testing.TB, members ...member) []byte {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, m := range members {
		h := &tar.Header{Name: m.name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(m.content))}
		if m.link != "" {
			h.Typeflag, h.Linkname = tar.TypeSymlink, m.link
		}
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write(m.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func jsonOf(v any) []byte {
	b, _ := json.Marshal(v)
	return b
}

// layout is an OCI archive of built, without the blobs in skip.
func layout(t testing.TB, built imagetest.Built, annotations map[string]string, skip ...digest.Digest) []byte {
	d := built.Manifest
	d.Annotations = annotations
	members := []member{{name: "index.json", content: jsonOf(ocispec.Index{Manifests: []ocispec.Descriptor{d}})}}
	for id, b := range built.Blobs {
		if !slices.Contains(skip, id) {
			members = append(members, member{name: "blobs/sha256/" + id.Encoded(), content: b})
		}
	}
	return tarOf(t, append(members, member{name: "oci-layout", content: []byte(`{"imageLayoutVersion":"1.0.0"}`)})...)
}

// saved is docker's old format: the second layer is a link to the first image's.
func saved(t testing.TB, built imagetest.Built, layers []imagetest.Layer) []byte {
	cfg := built.ID.Encoded() + ".json"
	type image struct {
		Config           string
		RepoTags, Layers []string
	}
	im := image{Config: cfg, RepoTags: []string{"busy:1", "other.example/busy:2"}}
	members := []member{{name: cfg, content: built.Blobs[built.ID]}, {name: "repositories", content: []byte("{}")}}
	for i, l := range layers {
		name := fmt.Sprintf("l%d/layer.tar", i)
		im.Layers = append(im.Layers, name)
		members = append(members, member{name: fmt.Sprintf("store/%d", i), content: l}, member{name: name, link: fmt.Sprintf("../store/%d", i)})
	}
	return tarOf(t, append(members, member{name: "manifest.json", content: jsonOf([]image{im})})...)
}

func TestImport(t *testing.T) {
	testns.Root(t)
	img := threeLayers()
	built := img.Build()
	arm := small("arm")
	arm.Platform = ocispec.Platform{OS: "linux", Architecture: "arm64"}
	index := imagetest.Index(arm, img)
	armBuilt := arm.Build()
	full := map[string]string{"io.containerd.image.name": "docker.io/library/busy:1", "org.opencontainers.image.ref.name": "1"}
	gz := func(b []byte) []byte {
		var buf bytes.Buffer
		w := gzip.NewWriter(&buf)
		_, _ = w.Write(b)
		_ = w.Close()
		return buf.Bytes()
	}
	zs := func(b []byte) []byte { w, _ := zstd.NewWriter(nil); return w.EncodeAll(b, nil) }
	byDigest := "docker.io/library/busy@" + built.Manifest.Digest.String()
	for name, c := range map[string]struct {
		archive       []byte
		tags, digests []string
	}{
		"oci":              {layout(t, built, full), []string{"docker.io/library/busy:1"}, []string{byDigest}},
		"oci gzip":         {gz(layout(t, built, full)), []string{"docker.io/library/busy:1"}, []string{byDigest}},
		"oci zstd":         {zs(layout(t, built, full)), []string{"docker.io/library/busy:1"}, []string{byDigest}},
		"oci short name":   {layout(t, built, map[string]string{"org.opencontainers.image.ref.name": "busy:1"}), []string{"docker.io/library/busy:1"}, []string{byDigest}},
		"oci bare tag":     {layout(t, built, map[string]string{"org.opencontainers.image.ref.name": "1"}), nil, nil},
		"oci unnamed":      {layout(t, built, nil), nil, nil},
		"partial platform": {layout(t, index, full, armBuilt.Manifest.Digest, armBuilt.ID, armBuilt.Parsed.Layers[0].Digest), []string{"docker.io/library/busy:1"}, []string{"docker.io/library/busy@" + index.Manifest.Digest.String()}},
		"docker save":      {saved(t, built, img.Layers), []string{"docker.io/library/busy:1", "other.example/busy:2"}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config(t, t.TempDir())
			s := open(t, cfg)
			got, err := s.Import(t.Context(), bytes.NewReader(c.archive))
			if err != nil {
				t.Fatal(err)
			}
			if len(got) != 1 || got[0].ID != built.ID.String() || !slices.Equal(got[0].RepoTags, c.tags) || !slices.Equal(got[0].RepoDigests, c.digests) {
				t.Fatalf("%+v", got)
			}
			checkTree(t, s, got[0].ID)
			checkUsage(t, s, cfg.Root)

			// Out and into another store.
			var out bytes.Buffer
			if err := s.Export(t.Context(), &out, got[0].ID); err != nil {
				t.Fatal(err)
			}
			s2 := open(t, config(t, t.TempDir()))
			again, err := s2.Import(t.Context(), &out)
			if err != nil || len(again) != 1 || again[0].ID != got[0].ID || !slices.Equal(again[0].RepoTags, c.tags) {
				t.Errorf("export and import: %+v %v", again, err)
			}
		})
	}
}

func TestImportRefused(t *testing.T) {
	testns.Root(t)
	built := small("x").Build()
	arm := small("arm")
	arm.Platform = ocispec.Platform{OS: "linux", Architecture: "arm64"}
	bad := imagetest.Built{Blobs: map[digest.Digest][]byte{built.ID: []byte("{}")}, Manifest: built.Manifest}
	for name, c := range map[string]struct {
		archive []byte
		kind    error
	}{
		"empty":             {nil, errdefs.ErrInvalidArgument},
		"no tar":            {bytes.Repeat([]byte("x"), 4096), errdefs.ErrInvalidArgument},
		"cut off":           {layout(t, built, nil)[:1300], errdefs.ErrInvalidArgument},
		"no image":          {tarOf(t, member{name: "README", content: []byte("x")}), errdefs.ErrInvalidArgument},
		"empty index":       {tarOf(t, member{name: "index.json", content: []byte("{}")}), errdefs.ErrInvalidArgument},
		"broken index":      {tarOf(t, member{name: "index.json", content: []byte("{")}), errdefs.ErrInvalidArgument},
		"wrong digest":      {layout(t, bad, nil), errdefs.ErrDataLoss},
		"layer missing":     {layout(t, built, nil, built.Parsed.Layers[0].Digest), errdefs.ErrNotFound},
		"config missing":    {layout(t, built, nil, built.ID), errdefs.ErrNotFound},
		"other platform":    {layout(t, arm.Build(), nil), errdefs.ErrFailedPrecondition},
		"name with dot dot": {layout(t, built, map[string]string{"io.containerd.image.name": "a/../../b:1"}), errdefs.ErrInvalidArgument},
		"links in a circle": {tarOf(t, member{name: "manifest.json", content: []byte(`[{"Config":"a"}]`)}, member{name: "a", link: "b"}, member{name: "b", link: "a"}), errdefs.ErrNotFound},
		"too many entries":  {tarOf(t, slices.Repeat([]member{{name: "x"}}, 40)...), errdefs.ErrResourceExhausted},
		"too large":         {tarOf(t, member{name: "x", content: make([]byte, 1<<20)}), errdefs.ErrResourceExhausted},
		"huge index":        {tarOf(t, member{name: "index.json", content: bytes.Repeat([]byte(" "), 100<<10)}), errdefs.ErrResourceExhausted},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config(t, t.TempDir())
			cfg.Limits.Archive, cfg.Limits.ArchiveEntries, cfg.Limits.Config = 512<<10, 32, 64<<10
			s := open(t, cfg)
			if _, err := s.Import(t.Context(), bytes.NewReader(c.archive)); !errors.Is(err, c.kind) {
				t.Errorf("%v, want %v", err, c.kind)
			}
			clean(t, s, cfg.Root)
		})
	}
}

type failing struct{ after int }

func (f *failing) Write(p []byte) (int, error) {
	if f.after -= len(p); f.after < 0 {
		return 0, io.ErrClosedPipe
	}
	return len(p), nil
}

func TestExport(t *testing.T) {
	testns.Root(t)
	srv := serve(t)
	srv.Put("one", "v1", small("one").Build())
	srv.Put("two", "v1", threeLayers().Build())
	cfg := config(t, t.TempDir())
	s := open(t, cfg)
	one, two := pull(t, s, srv.Host+"/one:v1"), pull(t, s, srv.Host+"/two:v1")
	if err := s.Tag(t.Context(), one.ID, "x:second"); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := s.Export(t.Context(), &out, "x:second", two.ID); err != nil {
		t.Fatal(err)
	}
	s2 := open(t, config(t, t.TempDir()))
	got, err := s2.Import(t.Context(), &out)
	if err != nil || len(got) != 2 {
		t.Fatal(got, err)
	}
	if img, err := s2.Get(one.ID); err != nil || !slices.Equal(img.RepoTags, []string{"docker.io/library/x:second"}) {
		t.Errorf("a name that was not exported came along: %+v %v", img, err)
	}
	if err := s.Export(t.Context(), io.Discard, "nothing"); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	if err := s.Export(t.Context(), &failing{after: 2000}, two.ID); !errors.Is(err, io.ErrClosedPipe) {
		t.Error(err)
	}

	// Without blobs there is nothing to export, until the image is pulled with blobs again.
	_ = s.Close()
	cfg = config(t, t.TempDir())
	cfg.DiscardUnpackedLayers = true
	s = open(t, cfg)
	pull(t, s, srv.Host+"/one:v1")
	if err := s.Export(t.Context(), io.Discard, one.ID); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "discard") {
		t.Error(err)
	}
	checkUsage(t, s, cfg.Root)
	_ = s.Close()
	cfg.DiscardUnpackedLayers = false
	s = open(t, cfg)
	pull(t, s, srv.Host+"/one:v1")
	if err := s.Export(t.Context(), io.Discard, one.ID); err != nil {
		t.Error(err)
	}
	checkUsage(t, s, cfg.Root)
}
