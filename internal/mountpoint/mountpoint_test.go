package mountpoint

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/testns"
)

func TestMain(m *testing.M) { testns.Main(m) }

func TestRemoveAll(t *testing.T) {
	testns.Root(t)
	dir := filepath.Join(t.TempDir(), "dir")
	volume, link := filepath.Join(dir, "a", "volume"), filepath.Join(dir, "link")
	outside := filepath.Join(t.TempDir(), "kept")
	if err := errors.Join(os.MkdirAll(volume, 0o755), os.WriteFile(filepath.Join(dir, "file"), nil, 0o600), os.Mkdir(outside, 0o755),
		os.Symlink(outside, link), unix.Mount("volume", volume, "tmpfs", 0, "")); err != nil {
		t.Fatal(err)
	}
	kept := filepath.Join(volume, "kept")
	if err := os.WriteFile(kept, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if is, err := Is(volume); !is || err != nil {
		t.Errorf("a mount point: %v, %v", is, err)
	}
	for _, path := range []string{dir, link} {
		if is, err := Is(path); is || err != nil {
			t.Errorf("%s is none: %v, %v", path, is, err)
		}
	}
	if err := RemoveAll(dir); !errors.Is(err, unix.EBUSY) {
		t.Errorf("with something mounted below: %v", err)
	}
	if _, err := os.Stat(kept); err != nil {
		t.Errorf("what is mounted there: %v", err)
	}
	if err := unix.Unmount(volume, 0); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := RemoveAll(dir); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat(outside); err != nil {
		t.Errorf("a link was followed: %v", err)
	}
	if _, err := Is(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("of nothing: %v", err)
	}
}

// TestUnknown: an attribute that the kernel does not know is not one that is unset.
func TestUnknown(t *testing.T) {
	if is, err := root(&unix.Statx_t{}); is || !errdefs.IsNotImplemented(err) {
		t.Errorf("%v, %v", is, err)
	}
	if is, err := root(&unix.Statx_t{Attributes_mask: unix.STATX_ATTR_MOUNT_ROOT}); is || err != nil {
		t.Errorf("%v, %v", is, err)
	}
}
