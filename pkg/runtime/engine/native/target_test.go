package native

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/testns"
)

func TestEnsure(t *testing.T) {
	for _, tt := range []struct {
		name, link, target, path string
		dir                      bool
		made                     string // "": refused
	}{
		{"directory", "", "", "/a/b/c", true, "a/b/c"},
		{"file", "", "", "/a/b/c", false, "a/b/c"},
		{"up", "", "", "/../../a/../b", true, "b"},
		{"dangling link", "etc/resolv.conf", "../run/resolve/stub", "/etc/resolv.conf", false, "run/resolve/stub"},
		{"dangling absolute link", "var", "/data/var", "/var/run", true, "data/var/run"},
		{"link that climbs", "l", "../../../../x", "/l/y", true, "x/y"},
		{"through a file", "", "", "/file/x", true, ""},
		{"loop", "l", "l", "/l/x", true, ""},
		{"growing loop", "l", "l/l", "/l", true, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			base := t.TempDir()
			root := filepath.Join(base, "outer", "root")
			if err := os.MkdirAll(filepath.Join(root, "etc"), 0o755); err != nil {
				t.Fatal(err)
			}
			refile(t, filepath.Join(root, "file"))
			if tt.link != "" {
				relink(t, tt.target, filepath.Join(root, tt.link))
			}
			fd, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			got, err := ensure(fd, tt.path, tt.dir)
			if tt.made == "" {
				if err == nil {
					unix.Close(got)
					t.Error("made")
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(got)
			st, err := os.Stat(filepath.Join(root, tt.made))
			if err != nil || st.IsDir() != tt.dir {
				t.Errorf("%v %v", st, err)
			}
			if same, err := os.Stat(fmt.Sprintf("/proc/self/fd/%d", got)); err != nil || !os.SameFile(st, same) {
				t.Errorf("another file was opened: %v", err)
			}
			if out, _ := os.ReadDir(filepath.Dir(root)); len(out) != 1 {
				t.Errorf("made outside of the root: %v", out)
			}
		})
	}
}

// TestBindNode takes the way of an engine that may not make devices.
func TestBindNode(t *testing.T) {
	testns.Root(t)
	dir := t.TempDir()
	d, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(d)
	b := &builder{}
	if err := b.bindNode(d, "null", unix.S_IFCHR, unix.Mkdev(1, 3), "/dev/null"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(filepath.Join(dir, "null"), unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "null"), &st); err != nil || uint64(st.Rdev) != unix.Mkdev(1, 3) {
		t.Errorf("%x %v", st.Rdev, err)
	}
	if err := b.bindNode(d, "zero", unix.S_IFCHR, unix.Mkdev(1, 5), "/dev/null"); err == nil {
		t.Error("another device was taken")
	}
	if err := b.bindNode(d, "none", unix.S_IFCHR, unix.Mkdev(1, 5), "/no/such"); err == nil {
		t.Error("a missing device was taken")
	}
}

// TestJoinMountNamespace: the container pivots a mount namespace that was made for it.
func TestJoinMountNamespace(t *testing.T) {
	b := newBed(t)
	var ns *os.File
	err := onThread(func() (err error) {
		if err = unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err == nil {
			ns, err = os.Open("/proc/thread-self/ns/mnt")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	spec := newSpec("/bin/sh", "-c", "echo $$; ls / | head -n 2; cut -d' ' -f5 /proc/self/mountinfo | head -n 1")
	for i, n := range spec.Linux.Namespaces {
		if n.Type == specs.MountNamespace {
			spec.Linux.Namespaces[i].Path = fmt.Sprintf("/proc/self/fd/%d", ns.Fd())
		}
	}
	if out, code := b.output(t, b.config(t, spec)); code != 0 || out[:6] != "1\nbin\n" {
		t.Errorf("%d %s", code, out)
	}
}
