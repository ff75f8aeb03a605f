package oci

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/testns"
)

// What a runtime has made where the root had been goes; what is mounted there still does not.
func TestRelease(t *testing.T) {
	testns.Root(t)
	c := &container{dir: t.TempDir()}
	make := func(names ...string) {
		for _, name := range names {
			path := filepath.Join(c.rootfs(), name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	make("dev/null", "etc/hosts", "writer")
	for range 2 {
		if err := unix.Mount("root", c.rootfs(), "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := c.release(); err != nil {
			t.Fatal(err)
		}
	}
	if left, _ := os.ReadDir(c.dir); len(left) > 0 {
		t.Error(left)
	}
	make("volume/file")
	volume := filepath.Join(c.rootfs(), "volume")
	if err := unix.Mount("volume", volume, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	make("volume/kept")
	if err := c.release(); err == nil {
		t.Error("a mount below the root was passed over")
	}
	if _, err := os.Stat(filepath.Join(volume, "kept")); err != nil {
		t.Error(err)
	}
	if err := unix.Unmount(volume, 0); err != nil {
		t.Fatal(err)
	}
	if err := c.release(); err != nil {
		t.Error(err)
	}
}
