package runtime

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore"
	"github.com/seed-9a14075a/cri-server/pkg/rootfs"
)

func TestMain(m *testing.M) { testns.Main(m) }

// viewed is a store with one image, of a directory.
type viewed struct {
	imagestore.Store
	dir string
}

func (v *viewed) View(string) (rootfs.Rootfs, error) { return rootfs.Rootfs{Path: v.dir}, nil }

// layerOf makes a directory with these accounts.
func layerOf(t *testing.T, dir, passwd string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Join(dir, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte(passwd), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestImageFiles: files of an image are read once, and anew when its layers are others; what can't be read, or is long, is read
// each time.
func TestImageFiles(t *testing.T) {
	testns.Root(t)
	dir := filepath.Join(t.TempDir(), "fs")
	layerOf(t, dir, "one")
	var f imageFiles
	images := &viewed{dir: dir}
	passwd := func(id string) string {
		t.Helper()
		got, err := f.of(images, id)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := got.read("etc/group"); err != nil || b != nil {
			t.Errorf("a file that is not there: %q %v", b, err)
		}
		b, err := got.read("etc/passwd")
		if err != nil {
			return err.Error()
		}
		return string(b)
	}
	if got := passwd("a"); got != "one" {
		t.Errorf("%q", got)
	}
	if err := os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte("changed behind its back"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := passwd("a"); got != "one" {
		t.Errorf("read again: %q", got)
	}
	if got := passwd("b"); !strings.HasPrefix(got, "changed") {
		t.Errorf("another image: %q", got)
	}
	if err := os.Rename(dir, dir+"-damaged"); err != nil {
		t.Fatal(err)
	}
	layerOf(t, dir, "repaired")
	if got := passwd("a"); got != "repaired" {
		t.Errorf("a repaired layer: %q", got)
	}
	images.dir = filepath.Join(t.TempDir(), "long")
	layerOf(t, images.dir, strings.Repeat("x", maxKept+1))
	if got := passwd("long"); len(got) != maxKept+1 {
		t.Errorf("%d bytes", len(got))
	}
	if f.m["long"] != nil {
		t.Error("a long file is kept")
	}
	if err := os.Truncate(filepath.Join(images.dir, "etc/passwd"), 2<<20); err != nil {
		t.Fatal(err)
	}
	if got := passwd("long"); !strings.Contains(got, "larger than") {
		t.Errorf("%.100q", got)
	}
	images.dir = dir
	for i := range maxImages + 5 {
		passwd(strings.Repeat("i", i+1))
	}
	if len(f.m) > maxImages {
		t.Errorf("%d images are kept", len(f.m))
	}
}
