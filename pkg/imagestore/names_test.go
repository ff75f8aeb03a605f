package imagestore_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore/imagetest"
)

// small is an image of one file; its content makes it distinct.
func small(content string) imagetest.Image {
	return imagetest.Image{Layers: []imagetest.Layer{imagetest.Files(map[string]imagetest.File{"f": file(content)})}}
}

func pull(t testing.TB, s *imagestore.Disk, ref string) *imagestore.Image {
	t.Helper()
	img, err := s.Pull(t.Context(), ref, nil)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func TestNames(t *testing.T) {
	testns.Root(t)
	srv := serve(t)
	one := small("one").Build()
	srv.Put("a/img", "latest", one)
	srv.Put("a/img", "v1", one)
	s := open(t, config(t, t.TempDir()))
	repo := srv.Host + "/a/img"
	pull(t, s, repo)
	img := pull(t, s, repo+":v1")
	byDigest := repo + "@" + one.Manifest.Digest.String()
	if !slices.Equal(img.RepoTags, []string{repo + ":latest", repo + ":v1"}) || !slices.Equal(img.RepoDigests, []string{byDigest}) {
		t.Errorf("%v %v", img.RepoTags, img.RepoDigests)
	}
	id := one.ID
	for _, ref := range []string{id.String(), id.Encoded(), id.Encoded()[:12], "sha256:" + id.Encoded()[:20], repo, repo + ":v1", byDigest, repo + ":ignored@" + one.Manifest.Digest.String()} {
		if got, err := s.Get(ref); err != nil || got.ID != id.String() {
			t.Errorf("Get %s: %v", ref, err)
		}
	}
	for ref, kind := range map[string]error{
		id.Encoded()[:11]: errdefs.ErrNotFound, repo + ":v2": errdefs.ErrNotFound, "UPPER": errdefs.ErrInvalidArgument, "": errdefs.ErrInvalidArgument,
		"a/../b": errdefs.ErrInvalidArgument, strings.Repeat("a", 5000): errdefs.ErrInvalidArgument, repo + "@sha512:" + strings.Repeat("a", 128): errdefs.ErrNotImplemented,
	} {
		if _, err := s.Get(ref); !errors.Is(err, kind) {
			t.Errorf("Get %.40q: %v, want %v", ref, err, kind)
		}
		if _, err := s.Pull(t.Context(), ref, nil); err == nil {
			t.Errorf("Pull %.40q succeeded", ref)
		}
	}

}

// TestNamesMove moves tags between images, by pulls and by hand, over a restart.
func TestNamesMove(t *testing.T) {
	testns.Root(t)
	srv := serve(t)
	one, two := small("one").Build(), small("two").Build()
	srv.Put("a/img", "latest", one)
	srv.Put("a/img", "v1", one)
	cfg := config(t, t.TempDir())
	s := open(t, cfg)
	repo, id := srv.Host+"/a/img", one.ID
	pull(t, s, repo)
	pull(t, s, repo+":v1")
	byDigest := repo + "@" + one.Manifest.Digest.String()

	// The image a tag was on keeps its other names.
	srv.Put("a/img", "v1", two)
	pull(t, s, repo+":v1")
	if old, err := s.Get(id.String()); err != nil || !slices.Equal(old.RepoTags, []string{repo + ":latest"}) {
		t.Errorf("the old image: %+v %v", old, err)
	}
	srv.Put("a/img", "latest", two)
	pull(t, s, repo)
	old, err := s.Get(byDigest)
	if err != nil || len(old.RepoTags) != 0 || len(old.RepoDigests) != 1 {
		t.Errorf("an image without tags keeps its digests: %+v %v", old, err)
	}

	// Names by hand.
	ctx := t.Context()
	if err := s.Tag(ctx, byDigest, "other/name"); err != nil {
		t.Fatal(err)
	}
	if err := s.Pin(ctx, "other/name", true); err != nil {
		t.Fatal(err)
	}
	if err := s.Tag(ctx, "none", "x"); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	if err := s.Tag(ctx, byDigest, "x@"+one.Manifest.Digest.String()); !errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	// All of that is there after a restart.
	s = open(t, cfg)
	img, err := s.Get("docker.io/other/name:latest")
	if err != nil || !img.Pinned || img.ID != id.String() || !slices.Equal(img.RepoTags, []string{"docker.io/other/name:latest"}) {
		t.Errorf("after a restart: %+v %v", img, err)
	}
	if n := len(s.List()); n != 2 {
		t.Errorf("%d images", n)
	}
	// Removal by a name drops the name; with the last tag of a repository its digests go, with the last name the image.
	if err := s.Remove(ctx, repo+":v1"); err != nil {
		t.Fatal(err)
	}
	if img, err := s.Get(two.ID.String()); err != nil || len(img.RepoTags) != 1 {
		t.Errorf("%+v %v", img, err)
	}
	for range 2 { // idempotent
		if err := s.Remove(ctx, repo); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Get(two.ID.String()); !errdefs.IsNotFound(err) {
		t.Errorf("an image without names: %v", err)
	}
	if err := s.Remove(ctx, id.Encoded()); err != nil {
		t.Fatal(err)
	}
	if l := s.List(); len(l) != 0 || s.Usage().Bytes != 0 || s.Usage().Inodes != 0 {
		t.Errorf("left: %v, %+v", l, s.Usage())
	}
}

func TestPlatforms(t *testing.T) {
	testns.Root(t)
	for name, c := range map[string]struct {
		node   ocispec.Platform
		images []ocispec.Platform
		want   int // index of images, -1: none
	}{
		"amd64":            {ocispec.Platform{OS: "linux", Architecture: "amd64"}, []ocispec.Platform{{OS: "linux", Architecture: "arm64"}, {OS: "linux", Architecture: "amd64"}}, 1},
		"arm64 variant":    {ocispec.Platform{OS: "linux", Architecture: "arm64"}, []ocispec.Platform{{OS: "linux", Architecture: "arm", Variant: "v7"}, {OS: "linux", Architecture: "arm64", Variant: "v8"}}, 1},
		"arm v7 falls":     {ocispec.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}, []ocispec.Platform{{OS: "linux", Architecture: "arm", Variant: "v5"}, {OS: "linux", Architecture: "arm", Variant: "v6"}}, 1},
		"other os":         {ocispec.Platform{OS: "linux", Architecture: "amd64"}, []ocispec.Platform{{OS: "windows", Architecture: "amd64"}}, -1},
		"other processors": {ocispec.Platform{OS: "linux", Architecture: "amd64"}, []ocispec.Platform{{OS: "linux", Architecture: "s390x"}}, -1},
	} {
		t.Run(name, func(t *testing.T) {
			var list []imagetest.Image
			for _, p := range c.images {
				i := small(p.Architecture + p.Variant)
				i.Platform = p
				list = append(list, i)
			}
			srv := serve(t)
			srv.Put("img", "v1", imagetest.Index(list...))
			cfg := config(t, t.TempDir())
			cfg.Platform = &c.node
			s := open(t, cfg)
			img, err := s.Pull(t.Context(), srv.Host+"/img:v1", nil)
			if c.want < 0 {
				if !errdefs.IsNotFound(err) {
					t.Errorf("%v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if want := list[c.want].Build().ID.String(); img.ID != want {
				t.Errorf("ID %s, want %s", img.ID, want)
			}
		})
	}
}

func TestManifestsRefused(t *testing.T) {
	testns.Root(t)
	srv := serve(t)
	srv.Put("img", "ok", small("x").Build())
	deep := imagetest.Index(small("x"))
	body := deep.Blobs[deep.Manifest.Digest]
	for range 5 {
		d := srv.PutManifest("img", "deep", ocispec.MediaTypeImageIndex, body)
		body = []byte(fmt.Sprintf(`{"schemaVersion":2,"mediaType":%q,"manifests":[{"mediaType":%q,"digest":%q,"size":%d}]}`, ocispec.MediaTypeImageIndex, ocispec.MediaTypeImageIndex, d, len(body)))
	}
	wide := `{"schemaVersion":2,"manifests":[` + strings.Repeat(`{},`, 2000) + `{}]}`
	arm := small("x")
	arm.Platform = ocispec.Platform{OS: "linux", Architecture: "arm64"}
	srv.Put("img", "arm", arm.Build())
	for name, c := range map[string]struct {
		body string
		kind error
	}{
		"schema1":    {`{"schemaVersion":1,"fsLayers":[{"blobSum":"x"}]}`, errdefs.ErrNotImplemented},
		"ambiguous":  {`{"schemaVersion":2,"config":{},"manifests":[]}`, errdefs.ErrInvalidArgument},
		"nothing":    {`{}`, errdefs.ErrInvalidArgument},
		"no JSON":    {`<html>`, errdefs.ErrInvalidArgument},
		"array":      {`[]`, errdefs.ErrInvalidArgument},
		"empty":      {``, errdefs.ErrInvalidArgument},
		"wide":       {wide, errdefs.ErrResourceExhausted},
		"artifact":   {`{"schemaVersion":2,"config":{"mediaType":"application/vnd.cncf.helm.config.v1+json"},"layers":[]}`, errdefs.ErrNotImplemented},
		"digest":     {`{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:12","size":1},"layers":[]}`, errdefs.ErrInvalidArgument},
		"path":       {`{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:../../../x","size":1},"layers":[]}`, errdefs.ErrInvalidArgument},
		"size":       {`{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:` + strings.Repeat("a", 64) + `","size":-1},"layers":[]}`, errdefs.ErrInvalidArgument},
		"big config": {`{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:` + strings.Repeat("a", 64) + `","size":999999999},"layers":[]}`, errdefs.ErrResourceExhausted},
	} {
		srv.PutManifest("img", "bad", ocispec.MediaTypeImageManifest, []byte(c.body))
		cfg := config(t, t.TempDir())
		s := open(t, cfg)
		if _, err := s.Pull(t.Context(), srv.Host+"/img:bad", nil); !errors.Is(err, c.kind) {
			t.Errorf("%s: %v, want %v", name, err, c.kind)
		}
		clean(t, s, cfg.Root)
	}
	s := open(t, config(t, t.TempDir()))
	if _, err := s.Pull(t.Context(), srv.Host+"/img:deep", nil); !errdefs.IsResourceExhausted(err) {
		t.Errorf("nested indexes: %v", err)
	}
	if _, err := s.Pull(t.Context(), srv.Host+"/img:arm", nil); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "linux/arm64") {
		t.Errorf("foreign platform: %v", err)
	}
}

// TestOneFlight pulls one image from many goroutines and looks at what the registry was asked for.
func TestOneFlight(t *testing.T) {
	testns.Root(t)
	srv := serve(t)
	built := oneLayer().Build()
	srv.Put("img", "v1", built)
	srv.Put("img", "v2", built)
	gate := make(chan struct{})
	srv.Intercept(func(_ http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") {
			<-gate
		}
		return false
	})
	s := open(t, config(t, t.TempDir()))
	ctx, cancel := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() { _, err := s.Pull(ctx, srv.Host+"/img:v1", nil); first <- err }()
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if _, err := s.Pull(t.Context(), fmt.Sprintf("%s/img:v%d", srv.Host, 1+i%2), nil); err != nil {
				t.Error(err)
			}
		})
	}
	cancel() // who came first leaves; the others lose nothing
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled pull: %v", err)
	}
	close(gate)
	wg.Wait()
	n := 0
	for _, r := range srv.Requests() {
		if strings.HasSuffix(r, built.Parsed.Layers[0].Digest.String()) {
			n++
		}
	}
	if n > 2 { // one more if the first had begun alone
		t.Errorf("the layer was fetched %d times", n)
	}
	if img, err := s.Get(built.ID.String()); err != nil || len(img.RepoTags) != 2 {
		t.Errorf("%+v %v", img, err)
	}
}

func TestSecondUserRefused(t *testing.T) {
	testns.Root(t)
	cfg := config(t, t.TempDir())
	s := open(t, cfg)
	if _, err := imagestore.Open(cfg); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), fmt.Sprint("process ", os.Getpid())) {
		t.Errorf("second Open: %v", err)
	}
	_ = s.Close()
	if _, err := s.Pull(t.Context(), "127.0.0.1:1/x", nil); !errdefs.IsUnavailable(err) {
		t.Errorf("Pull after Close: %v", err)
	}
	if err := os.WriteFile(filepath.Join(cfg.Root, "version"), []byte("99\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := imagestore.Open(cfg); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("a later version's store: %v", err)
	}
}
