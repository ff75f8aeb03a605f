package imagestore_test

import (
	"bytes"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore/imagetest"
)

// TestDamage breaks a closed store in many ways; the next Open lists only what is whole, and a pull heals.
func TestDamage(t *testing.T) {
	testns.Root(t)
	built := threeLayers().Build()
	layer := built.Image.RootFS.DiffIDs[1].Encoded()
	for name, c := range map[string]struct {
		damage func(root string) error
		listed bool
	}{
		"nothing":      {func(string) error { return nil }, true},
		"layer gone":   {func(r string) error { return os.RemoveAll(filepath.Join(r, "layers/sha256", layer)) }, false},
		"layer files":  {func(r string) error { return os.RemoveAll(filepath.Join(r, "layers/sha256", layer, "fs")) }, false},
		"empty record": {func(r string) error { return os.Truncate(filepath.Join(r, "layers/sha256", layer, "layer.json"), 0) }, false},
		"empty manifest": {func(r string) error {
			return os.Truncate(filepath.Join(r, "blobs/sha256", built.Manifest.Digest.Encoded()), 0)
		}, false},
		"wrong config": {func(r string) error {
			return os.WriteFile(filepath.Join(r, "blobs/sha256", built.ID.Encoded()), []byte("{}"), 0o600)
		}, false},
		"table cut":    {func(r string) error { return os.Truncate(filepath.Join(r, "images.json"), 20) }, false},
		"table gone":   {func(r string) error { return os.Remove(filepath.Join(r, "images.json")) }, false},
		"half table":   {func(r string) error { return os.WriteFile(filepath.Join(r, "images.json.tmp"), []byte("{"), 0o600) }, true},
		"stray files":  {func(r string) error { return os.WriteFile(filepath.Join(r, "layers/sha256/stray"), nil, 0o600) }, true},
		"half pull":    {func(r string) error { return os.MkdirAll(filepath.Join(r, "ingest/x/layer/fs/a/b"), 0o700) }, true},
		"half removal": {func(r string) error { return os.MkdirAll(filepath.Join(r, "trash/x/y"), 0o700) }, true},
		"relocated":    {nil, true},
		"layer blob lost": {func(r string) error {
			return os.Remove(filepath.Join(r, "blobs/sha256", built.Parsed.Layers[0].Digest.Encoded()))
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			srv := serve(t)
			srv.Put("img", "v1", built)
			cfg := config(t, filepath.Join(t.TempDir(), "store"))
			s := open(t, cfg)
			pull(t, s, srv.Host+"/img:v1")
			_ = s.Close()
			if c.damage == nil {
				moved := cfg.Root + "-moved"
				if err := os.Rename(cfg.Root, moved); err != nil {
					t.Fatal(err)
				}
				cfg.Root = moved
			} else if err := c.damage(cfg.Root); err != nil {
				t.Fatal(err)
			}
			s = open(t, cfg)
			if n := len(s.List()); (n == 1) != c.listed {
				t.Fatalf("%d images listed", n)
			}
			for _, sub := range []string{"ingest", "trash"} {
				if left, _ := os.ReadDir(filepath.Join(cfg.Root, sub)); len(left) != 0 {
					t.Errorf("%s: %v", sub, left)
				}
			}
			checkUsage(t, s, cfg.Root)
			img := pull(t, s, srv.Host+"/img:v1")
			checkTree(t, s, img.ID)
			checkUsage(t, s, cfg.Root)
		})
	}
}

// TestSnapshotKeepsLayers removes an image while a container has it.
func TestSnapshotKeepsLayers(t *testing.T) {
	testns.Root(t)
	srv := serve(t)
	built := threeLayers().Build()
	srv.Put("img", "v1", built)
	for _, driver := range []string{"overlay", "copy"} {
		t.Run(driver, func(t *testing.T) {
			cfg := config(t, t.TempDir())
			cfg.Snapshotter = driver
			s := open(t, cfg)
			img := pull(t, s, srv.Host+"/img:v1")
			ctx := t.Context()
			first, err := s.Snapshot(ctx, "c1", img.ID)
			if err != nil {
				t.Fatal(err)
			}
			for _, bad := range []string{"", "..", "a/b", ".x", strings.Repeat("k", 129), "view-x"} {
				if _, err := s.Snapshot(ctx, bad, img.ID); !errdefs.IsInvalidArgument(err) {
					t.Errorf("key %q: %v", bad, err)
				}
			}
			if _, err := s.Snapshot(ctx, "c2", "sha256:"+strings.Repeat("0", 64)); !errdefs.IsNotFound(err) {
				t.Errorf("no image: %v", err)
			}
			if _, err := s.View(img.ID); err != nil {
				t.Error(err)
			}
			if err := s.Remove(ctx, img.ID); err != nil {
				t.Fatal(err)
			}
			_ = s.Close()
			s = open(t, cfg)
			again, err := s.Snapshot(ctx, "c1", img.ID)
			if err != nil || fmt.Sprint(again) != fmt.Sprint(first) {
				t.Errorf("%+v %v, want %+v", again, err, first)
			}
			for _, l := range append(again.Lower, again.Path) {
				if l == "" {
					continue
				}
				if _, err := os.Stat(l); err != nil {
					t.Error(err)
				}
			}
			if got := s.Snapshots(); len(got) != 1 || got[0] != "c1" {
				t.Errorf("snapshots %v", got)
			}
			for range 2 {
				if err := s.RemoveSnapshot(ctx, "c1"); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := s.SnapshotUsage("c1"); !errdefs.IsNotFound(err) {
				t.Error(err)
			}
			_ = s.Close()
			if left, _ := os.ReadDir(filepath.Join(cfg.Root, "layers/sha256")); len(left) != 0 {
				t.Errorf("layers left: %d", len(left))
			}
			if left, _ := os.ReadDir(filepath.Join(cfg.Root, "trash")); len(left) != 0 {
				t.Errorf("trash left: %d", len(left))
			}
		})
	}
}

// TestCrash kills a pull with SIGKILL at points all along it.
func TestCrash(t *testing.T) {
	testns.Root(t)
	img := imagetest.Image{}
	for i := range 4 {
		img.Layers = append(img.Layers, imagetest.Files(map[string]imagetest.File{fmt.Sprintf("d%d/f", i): random(600_000 + i), fmt.Sprint("s", i): file("x")}))
	}
	built := img.Build()
	for kill := range 6 { // at the kill-th request, half way through a blob where it is for one
		t.Run(fmt.Sprint("request ", kill), func(t *testing.T) {
			srv := serve(t)
			srv.Put("img", "v1", built)
			var n, pid atomic.Int64
			started := make(chan struct{})
			srv.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
				<-started
				if n.Add(1) != int64(kill)+1 {
					return false
				}
				if i := strings.LastIndex(r.URL.Path, "sha256:"); i >= 0 && strings.Contains(r.URL.Path, "/blobs/") {
					for d, b := range built.Blobs {
						if strings.HasSuffix(r.URL.Path, d.String()) {
							_, _ = w.Write(b[:len(b)/2])
							w.(http.Flusher).Flush()
						}
					}
				}
				_ = syscall.Kill(int(pid.Load()), syscall.SIGKILL)
				return true
			})
			cfg := config(t, filepath.Join(t.TempDir(), "store"))
			ref := srv.Host + "/img:v1"
			killed, _ := child(t, []string{cfg.Root, ref, "0", "pull"}, func(p int) { pid.Store(int64(p)); close(started) })
			if !killed {
				t.Error("the child outlived its pull")
			}
			s := open(t, cfg)
			if killed {
				clean(t, s, cfg.Root)
				if u := s.Usage(); u.Bytes != 0 {
					t.Errorf("leaked: %+v", u)
				}
			}
			if img := pull(t, s, ref); img.ID != built.ID.String() {
				t.Errorf("ID %s", img.ID)
			}
			checkUsage(t, s, cfg.Root)
		})
	}
}

// TestDamagedBlob unpacks from a stored blob that rotted: it is fetched again.
func TestDamagedBlob(t *testing.T) {
	testns.Root(t)
	srv := serve(t)
	built := oneLayer().Build()
	srv.Put("img", "v1", built)
	cfg := config(t, t.TempDir())
	s := open(t, cfg)
	pull(t, s, srv.Host+"/img:v1")
	_ = s.Close()
	blob := filepath.Join(cfg.Root, "blobs/sha256", built.Parsed.Layers[0].Digest.Encoded())
	if err := os.RemoveAll(filepath.Join(cfg.Root, "layers/sha256", built.Image.RootFS.DiffIDs[0].Encoded())); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(blob, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte("rotten"), 1000)
	_ = f.Close()
	if err != nil {
		t.Fatal(err)
	}
	// The image is dropped for its layer; a tag of another image with the same layer keeps the blob alive.
	s = open(t, cfg)
	again := pull(t, s, srv.Host+"/img:v1")
	if again.ID != built.ID.String() {
		t.Errorf("ID %s", again.ID)
	}
	if b, err := os.ReadFile(blob); err != nil || !bytes.Equal(b, built.Blobs[built.Parsed.Layers[0].Digest]) {
		t.Errorf("the blob is still damaged: %v", err)
	}
}
