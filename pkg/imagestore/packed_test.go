package imagestore_test

import (
	"bytes"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/seed-9a14075a/cri-server/internal/testns"
)

// count is the number of entries in a directory of the store.
func count(t *testing.T, root, dir string) int {
	t.Helper()
	names, err := os.ReadDir(filepath.Join(root, dir))
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

// TestImportPacked imports without unpacking; the first container unpacks, once.
func TestImportPacked(t *testing.T) {
	testns.Root(t)
	built := threeLayers().Build()
	archive := layout(t, built, map[string]string{"io.containerd.image.name": "registry.example/a:v1"})
	for name, discard := range map[string]bool{"blobs kept": false, "blobs discarded": true} {
		t.Run(name, func(t *testing.T) {
			cfg := config(t, t.TempDir())
			cfg.DiscardUnpackedLayers = discard
			s := open(t, cfg)
			for range 2 { // the second time it is there
				list, err := s.ImportPacked(t.Context(), bytes.NewReader(archive))
				if err != nil || len(list) != 1 || list[0].ID != built.ID.String() {
					t.Fatalf("%+v %v", list, err)
				}
			}
			if n := count(t, cfg.Root, "layers/sha256"); n != 0 {
				t.Errorf("%d layers were unpacked", n)
			}
			_ = s.Close()
			s = open(t, cfg)
			if n := len(s.List()); n != 1 {
				t.Fatalf("%d images after a restart", n)
			}
			if r, err := s.Verify(t.Context(), false); err != nil || len(r.Problems) > 0 || r.Blobs != len(built.Blobs) {
				t.Errorf("%+v %v", r, err)
			}
			var out bytes.Buffer
			if err := s.Export(t.Context(), &out, built.ID.String()); err != nil {
				t.Errorf("export: %v", err)
			}
			checkUsage(t, s, cfg.Root)
			var wg sync.WaitGroup
			for _, key := range []string{"a", "b", "c", "d"} {
				wg.Go(func() {
					if _, err := s.Snapshot(t.Context(), key, "registry.example/a:v1"); err != nil {
						t.Error(err)
					}
					if err := s.RemoveSnapshot(t.Context(), key); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			blobs := len(built.Blobs)
			if discard {
				blobs -= 3
			}
			if l, b := count(t, cfg.Root, "layers/sha256"), count(t, cfg.Root, "blobs/sha256"); l != 3 || b != blobs {
				t.Errorf("%d layers, %d blobs, want 3 and %d", l, b, blobs)
			}
			checkTree(t, s, built.ID.String())
			checkUsage(t, s, cfg.Root)
			_ = s.Close()
			s = open(t, cfg)
			checkTree(t, s, built.ID.String())
			if err := s.Remove(t.Context(), built.ID.String()); err != nil {
				t.Fatal(err)
			}
			clean(t, s, cfg.Root)
		})
	}
}

// TestPackedDamaged finds out at the first container that a packed layer has rotted, and is healed by a pull.
func TestPackedDamaged(t *testing.T) {
	testns.Root(t)
	built := threeLayers().Build()
	srv := serve(t)
	srv.Put("img", "v1", built)
	cfg := config(t, t.TempDir())
	s := open(t, cfg)
	archive := layout(t, built, map[string]string{"io.containerd.image.name": srv.Host + "/img:v1"})
	if _, err := s.ImportPacked(t.Context(), bytes.NewReader(archive)); err != nil {
		t.Fatal(err)
	}
	blob := filepath.Join(cfg.Root, "blobs/sha256", built.Parsed.Layers[1].Digest.Encoded())
	b, err := os.ReadFile(blob)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(blob, b, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Snapshot(t.Context(), "c", built.ID.String()); !errdefs.IsDataLoss(err) {
		t.Fatalf("a container of a rotten layer: %v", err)
	}
	if _, err := s.View(built.ID.String()); err == nil {
		t.Error("a view was made of a rotten layer")
	}
	img := pull(t, s, srv.Host+"/img:v1")
	checkTree(t, s, img.ID)
	checkUsage(t, s, cfg.Root)
}
