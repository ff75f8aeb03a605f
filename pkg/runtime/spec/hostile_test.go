package spec

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/testns"
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

// A volume that is unmounted, or removed, just as its path is resolved never becomes something else of the host.
func TestSourceThatGoes(t *testing.T) {
	testns.Root(t)
	for name, x := range map[string]struct {
		path string // in a volume
		end  func(volume string) error
	}{
		"its root, unmounted":      {"", func(v string) error { return unix.Unmount(v, unix.MNT_DETACH) }},
		"a directory, unmounted":   {"etc", func(v string) error { return unix.Unmount(v, unix.MNT_DETACH) }},
		"a directory, removed":     {"etc", func(v string) error { return os.Remove(v + "/etc") }},
		"removed, and another's":   {"etc", func(v string) error { return errors.Join(os.Remove(v+"/etc"), os.Mkdir(v+"/etc (deleted)", 0o755)) }},
		"mounted over, underneath": {"etc", func(v string) error { return unix.Mount("tmpfs", v+"/etc", "tmpfs", 0, "") }},
	} {
		t.Run(name, func(t *testing.T) {
			volume := t.TempDir()
			if err := unix.Mount("tmpfs", volume, "tmpfs", 0, ""); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = unix.Unmount(volume+"/etc", 0); _ = unix.Unmount(volume, 0) })
			if err := os.Mkdir(volume+"/etc", 0o755); err != nil {
				t.Fatal(err)
			}
			link := filepath.Join(t.TempDir(), "link")
			if err := os.Symlink(volume, link); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(link, x.path)
			fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			if to, ok := pathOf(fd, path); !ok || to != filepath.Join(volume, x.path) {
				t.Errorf("before: %q %v", to, ok)
			}
			if err := x.end(volume); err != nil {
				t.Fatal(err)
			}
			if to, ok := pathOf(fd, path); ok {
				t.Errorf("it is taken to be at %q", to)
			}
		})
	}
}
