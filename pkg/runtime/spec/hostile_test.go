package spec

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// An image's /etc/passwd may be anything. It must neither be waited for, nor lead out of the image, nor make a user out
// of what is not there.
func TestHostileAccounts(t *testing.T) {
	host := filepath.Join(t.TempDir(), "passwd")
	if err := os.WriteFile(host, []byte("evil:x:7:7::/:\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, x := range map[string]struct {
		make func(path string) error
		want error
	}{
		"fifo":             {func(p string) error { return unix.Mkfifo(p, 0o644) }, errdefs.ErrInvalidArgument},
		"device":           {func(p string) error { return unix.Mknod(p, unix.S_IFCHR|0o644, int(unix.Mkdev(1, 5))) }, errdefs.ErrInvalidArgument},
		"socket":           {func(p string) error { return unix.Mknod(p, unix.S_IFSOCK|0o644, 0) }, errdefs.ErrInvalidArgument},
		"link to the host": {func(p string) error { return os.Symlink(host, p) }, errdefs.ErrNotFound},
		"link up":          {func(p string) error { return os.Symlink("../../../../../../../.."+host, p) }, errdefs.ErrNotFound},
		"link to proc":     {func(p string) error { return os.Symlink("/proc/self/root"+host, p) }, errdefs.ErrNotFound},
		"loop":             {func(p string) error { return os.Symlink("passwd", p) }, unix.ELOOP},
		"nothing":          {func(string) error { return nil }, errdefs.ErrNotFound},
	} {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "etc"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := x.make(filepath.Join(dir, "etc/passwd")); errors.Is(err, unix.EPERM) {
			t.Logf("%s: not tried: %v", name, err)
			continue
		} else if err != nil {
			t.Fatal(err)
		}
		root, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		if u, err := (accounts{FilesOf(root)}).resolve("evil"); !errors.Is(err, x.want) {
			t.Errorf("%s: %+v %v", name, u, err)
		}
		root.Close()
	}
}
