package imagestore_test

import (
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore/imagetest"
)

var update = flag.Bool("update", false, "write the store of the present format anew")

// fixture is a store of format version 1, as tar(1) packs it: an image with three names, one of them pinned, and a container's
// snapshot. It stays as it is when the format gets another version: then it shows that old stores are still read.
const fixture = "testdata/store-v1.tar.gz"

// TestFormat opens the kept store, at a place where it was not made.
func TestFormat(t *testing.T) {
	testns.Root(t)
	built := threeLayers().Build()
	if *update {
		writeFixture(t, built)
	}
	root := filepath.Join(t.TempDir(), "moved", "here")
	if err := os.MkdirAll(root, 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("tar", "--xattrs", "--xattrs-include=*", "-C", root, "-xzf", fixture).CombinedOutput(); err != nil {
		t.Fatalf("tar: %v: %s", err, out)
	}
	for range 2 { // as it was kept, and as this program leaves it
		s := open(t, config(t, root))
		list := s.List()
		if len(list) != 1 || list[0].ID != built.ID.String() || !list[0].Pinned {
			t.Fatalf("%+v", list)
		}
		if want := []string{"docker.io/library/two:v2", "registry.example/one:v1"}; !slices.Equal(list[0].RepoTags, want) {
			t.Errorf("tags %v, want %v", list[0].RepoTags, want)
		}
		if r, err := s.Verify(t.Context(), false); err != nil || len(r.Problems) > 0 || r.Blobs != len(built.Blobs) || r.Layers != 3 {
			t.Errorf("%+v %v", r, err)
		}
		if keys := s.Snapshots(); !slices.Equal(keys, []string{"kept"}) {
			t.Errorf("snapshots %v", keys)
		}
		r, err := s.Snapshot(t.Context(), "kept", built.ID.String())
		if err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(filepath.Join(r.Upper, "written")); err != nil || string(b) != "by a container" {
			t.Errorf("%q %v", b, err)
		}
		for _, dir := range append(r.Lower, r.Upper, r.Work) {
			if rel, err := filepath.Rel(root, dir); err != nil || !filepath.IsLocal(rel) {
				t.Errorf("%s is not below the store's root", dir)
			}
		}
		checkUsage(t, s, root)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	s := open(t, config(t, root))
	if err := s.RemoveSnapshot(t.Context(), "kept"); err != nil {
		t.Fatal(err)
	}
	checkTree(t, s, built.ID.String())
}

func writeFixture(t *testing.T, built imagetest.Built) {
	root := t.TempDir()
	s := open(t, config(t, root))
	srv := serve(t)
	srv.Put("one", "v1", built)
	cfg := config(t, root)
	hosts(t, cfg, "registry.example", "server = \"http://"+srv.Host+"\"\n")
	_ = s.Close()
	s = open(t, cfg)
	img := pull(t, s, "registry.example/one:v1")
	if err := s.Tag(t.Context(), img.ID, "two:v2"); err != nil {
		t.Fatal(err)
	}
	if err := s.Pin(t.Context(), img.ID, true); err != nil {
		t.Fatal(err)
	}
	r, err := s.Snapshot(t.Context(), "kept", img.ID)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(r.Upper, "written"), []byte("by a container"), 0o644); err != nil {
		t.Fatal(err)
	}
	_ = s.Close()
	name, err := filepath.Abs(fixture)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	c := exec.Command("tar", "--xattrs", "--xattrs-include=*", "--sort=name", "--exclude=./lock", "-C", root, "-czf", name, ".")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("tar: %v: %s", err, out)
	}
}
