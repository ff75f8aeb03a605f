package imagestore_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore/imagetest"
)

// damages are what a disk or a power cut does to a store, by the kind of problem that is to be found.
func damages(built imagetest.Built) map[string]struct {
	do    func(root string) error
	kind  string
	quick bool // found without reading content
	local bool // repaired without a registry
} {
	layer := func(r, p string) string {
		return filepath.Join(r, "layers/sha256", built.Image.RootFS.DiffIDs[0].Encoded(), p)
	}
	blob := func(r string) string {
		return filepath.Join(r, "blobs/sha256", built.Parsed.Layers[0].Digest.Encoded())
	}
	return map[string]struct {
		do    func(root string) error
		kind  string
		quick bool
		local bool
	}{
		"flipped byte in a layer": {func(r string) error { return overwrite(layer(r, "fs/etc/passwd"), 1) }, "layer", false, true},
		"empty file in a layer":   {func(r string) error { return os.Truncate(layer(r, "fs/etc/passwd"), 0) }, "layer", true, true},
		"file gone":               {func(r string) error { return os.Remove(layer(r, "fs/opt/old/a")) }, "layer", true, true},
		"directory gone":          {func(r string) error { return os.RemoveAll(layer(r, "fs/opt")) }, "layer", true, true},
		"manifest of files":       {func(r string) error { return overwrite(layer(r, "files"), 20) }, "layer", true, true},
		"flipped byte in a blob":  {func(r string) error { return overwrite(blob(r), 40) }, "blob", false, false},
		"cut blob":                {func(r string) error { return os.Truncate(blob(r), 10) }, "blob", true, false},
		"blob gone":               {func(r string) error { return os.Remove(blob(r)) }, "blob", true, false},
		"blob and layer": {func(r string) error {
			return errors.Join(os.Truncate(blob(r), 10), os.Truncate(layer(r, "fs/bin/sh"), 0))
		}, "blob", true, false},
		"config": {func(r string) error {
			return overwrite(filepath.Join(r, "blobs/sha256", built.ID.Encoded()), 5)
		}, "blob", false, false},
		"image manifest": {func(r string) error {
			return overwrite(filepath.Join(r, "blobs/sha256", built.Manifest.Digest.Encoded()), 5)
		}, "blob", false, false},
	}
}

func overwrite(name string, at int64) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		return err
	}
	b[0] ^= 0x10
	_, err = f.WriteAt(b[:], at)
	return err
}

// TestVerifyRepair damages a store in use, with and without a container on the image and with and without a registry.
func TestVerifyRepair(t *testing.T) {
	testns.Root(t)
	built := threeLayers().Build()
	for name, d := range damages(built) {
		for _, used := range []bool{false, true} {
			for _, online := range []bool{true, false} {
				t.Run(fmt.Sprintf("%s/used=%v/online=%v", name, used, online), func(t *testing.T) {
					srv := serve(t)
					srv.Put("img", "v1", built)
					cfg := config(t, t.TempDir())
					cfg.Registry.Attempts = 1
					s := open(t, cfg)
					ref := srv.Host + "/img:v1"
					img := pull(t, s, ref)
					if r, err := s.Verify(t.Context(), false); err != nil || len(r.Problems) != 0 || r.Layers != 3 || r.Blobs != 5 {
						t.Fatalf("undamaged: %+v, %v", r, err)
					}
					if used {
						if _, err := s.Snapshot(t.Context(), "holder", img.ID); err != nil {
							t.Fatal(err)
						}
					}
					if err := d.do(cfg.Root); err != nil {
						t.Fatal(err)
					}
					checkFound(t, s, d.kind, d.quick, img.ID)
					if !online {
						_ = srv.Close()
					}
					r, err := s.Repair(t.Context(), false, ref)
					if err != nil {
						t.Fatal(err)
					}
					if !online && !d.local {
						if len(r.Dropped) != 1 || len(s.List()) != 0 {
							t.Errorf("%+v, %d images listed", r, len(s.List()))
						}
						return
					}
					if len(r.Repaired) == 0 || len(r.Dropped) != 0 {
						t.Errorf("%+v", r)
					}
					if r, err := s.Verify(t.Context(), false); err != nil || len(r.Problems) != 0 {
						t.Errorf("after repair: %+v, %v", r, err)
					}
					if err := s.RemoveSnapshot(t.Context(), "holder"); err != nil {
						t.Error(err)
					}
					checkTree(t, s, img.ID)
					checkUsage(t, s, cfg.Root)
				})
			}
		}
	}
}

func checkFound(t *testing.T, s *imagestore.Disk, kind string, quick bool, image string) {
	t.Helper()
	for _, q := range []bool{true, false} {
		r, err := s.Verify(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		found := slices.ContainsFunc(r.Problems, func(p imagestore.Problem) bool {
			return p.Kind == kind && slices.Contains(p.Images, image)
		})
		if want := quick || !q; found != want {
			t.Errorf("quick=%v: found %v, want %v: %+v", q, found, want, r.Problems)
		}
	}
}

// TestUnclean opens a store that another boot of the machine left open, damaged in many ways: nothing damaged is listed
// for long, and what can be repaired is.
func TestUnclean(t *testing.T) {
	testns.Root(t)
	built := threeLayers().Build()
	for name, d := range damages(built) {
		t.Run(name, func(t *testing.T) {
			srv := serve(t)
			srv.Put("img", "v1", built)
			cfg := config(t, t.TempDir())
			s := open(t, cfg)
			img := pull(t, s, srv.Host+"/img:v1")
			_ = s.Close()
			if _, err := os.Stat(filepath.Join(cfg.Root, "open")); !os.IsNotExist(err) {
				t.Fatalf("a closed store has the mark: %v", err)
			}
			if err := os.WriteFile(filepath.Join(cfg.Root, "open"), []byte("another boot"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := d.do(cfg.Root); err != nil {
				t.Fatal(err)
			}
			s = open(t, cfg)
			deadline := time.Now().Add(20 * time.Second)
			for !s.Checked() {
				if time.Now().After(deadline) {
					t.Fatal("the check does not end")
				}
				time.Sleep(time.Millisecond)
			}
			for range s.List() {
				checkTree(t, s, img.ID)
			}
			if r, err := s.Verify(t.Context(), false); err != nil || len(r.Problems) != 0 {
				t.Errorf("after the check: %+v, %v", r, err)
			}
			pull(t, s, srv.Host+"/img:v1")
			checkTree(t, s, img.ID)
			checkUsage(t, s, cfg.Root)
		})
	}
}

// TestHealMounted repairs a layer while it is mounted: what a container opens afterwards is whole.
func TestHealMounted(t *testing.T) {
	testns.Root(t)
	srv := serve(t)
	built := threeLayers().Build()
	srv.Put("img", "v1", built)
	cfg := config(t, t.TempDir())
	s := open(t, cfg)
	img := pull(t, s, srv.Host+"/img:v1")
	root, err := s.Snapshot(t.Context(), "c", img.ID)
	if err != nil {
		t.Fatal(err)
	}
	if root.Path != "" {
		t.Skip("no overlayfs here")
	}
	passwd := filepath.Join(cfg.Root, "layers/sha256", built.Image.RootFS.DiffIDs[0].Encoded(), "fs/etc/passwd")
	if err := os.Truncate(passwd, 0); err != nil {
		t.Fatal(err)
	}
	lower := bytes.Join(func() (out [][]byte) {
		for _, l := range root.Lower {
			out = append(out, []byte(l))
		}
		return out
	}(), []byte(":"))
	dir := t.TempDir()
	if err := unix.Mount("overlay", dir, "overlay", 0, "lowerdir="+string(lower)+",upperdir="+root.Upper+",workdir="+root.Work); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(dir, 0) }()
	if r, err := s.Repair(t.Context(), false); err != nil || len(r.Repaired) != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "etc/passwd")); err != nil || string(b) != "root" {
		t.Errorf("%q, %v", b, err)
	}
}
