package imagestore_test

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/seed-9a14075a/cri-server/internal/testns"
)

func TestImportDir(t *testing.T) {
	testns.Root(t)
	srv := serve(t)
	srv.Put("one", "v1", threeLayers().Build())
	srv.Put("two", "v1", oneLayer().Build())
	src := open(t, config(t, t.TempDir()))
	dir := t.TempDir()
	for _, name := range []string{"one", "two"} {
		ref := srv.Host + "/" + name + ":v1"
		pull(t, src, ref)
		f, err := os.Create(filepath.Join(dir, name+".tar"))
		if err != nil {
			t.Fatal(err)
		}
		if err := src.Export(t.Context(), f, ref); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
	}
	for name, text := range map[string]string{"bad.tar": "no archive", "README": "not for us", ".hidden.tar": "nor this"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cfg := config(t, t.TempDir())
	cfg.ImportDir = dir
	s := open(t, cfg)
	waitFor(t, func() bool { return len(s.List()) == 2 })
	_ = s.Close() // waits for the import
	if b, err := os.ReadFile(filepath.Join(cfg.Root, "imported.json")); err != nil || len(b) < 100 {
		t.Fatalf("%s, %v", b, err)
	}

	// Unchanged archives are not read again; a changed one is, and one whose image was removed.
	s = open(t, cfg)
	if err := s.ImportDir(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	before := s.List()[0].PulledAt
	if err := s.ImportDir(t.Context(), dir); err != nil || !s.List()[0].PulledAt.Equal(before) {
		t.Errorf("imported again: %v", err)
	}
	if err := s.Remove(t.Context(), srv.Host+"/two:v1"); err != nil {
		t.Fatal(err)
	}
	if err := s.ImportDir(t.Context(), dir); err != nil || len(s.List()) != 2 {
		t.Errorf("a removed image is not imported again: %v", err)
	}
	if err := s.ImportDir(t.Context(), filepath.Join(dir, "none")); err != nil {
		t.Errorf("no directory: %v", err)
	}
}

func waitFor(t *testing.T, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited too long")
		}
	}
}

func TestPinnedByConfiguration(t *testing.T) {
	testns.Root(t)
	srv := serve(t)
	srv.Put("pause", "v1", oneLayer().Build())
	cfg := config(t, t.TempDir())
	cfg.Pinned = []string{srv.Host + "/pause:*"}
	s := open(t, cfg)
	if img := pull(t, s, srv.Host+"/pause:v1"); !img.Pinned || !s.List()[0].Pinned {
		t.Error("not pinned")
	}
	if p, err := s.Prune(t.Context(), true); err != nil || len(p.Images) != 0 {
		t.Errorf("%+v, %v", p, err)
	}
	if err := s.SetPinned([]string{"other"}); err != nil || s.List()[0].Pinned {
		t.Errorf("still pinned: %v", err)
	}
	if err := s.SetPinned([]string{"["}); !errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
}
