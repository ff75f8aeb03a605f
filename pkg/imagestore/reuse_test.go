package imagestore_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/smallfile"
	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore/imagetest"
)

// reused lists the directories that are kept for new snapshots.
func reused(t *testing.T, root string) []string {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join(root, "reuse/*"))
	if err != nil {
		t.Fatal(err)
	}
	return dirs
}

// removed waits until snapshots are removed, which happens behind the call, and n directories are kept.
func removed(t *testing.T, root string, n int) {
	t.Helper()
	for deadline := time.Now().Add(testns.Patience(15 * time.Second)); ; time.Sleep(time.Millisecond) {
		left, err := os.ReadDir(filepath.Join(root, "trash"))
		if err == nil && len(left) == 0 && len(reused(t, root)) == n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("in the trash: %v %v; kept: %v, want %d", left, err, reused(t, root), n)
		}
	}
}

// TestReuse: what a container left in its snapshot is not in the next one, which is made in the same directory.
func TestReuse(t *testing.T) {
	testns.Root(t)
	for _, driver := range []string{"overlay", "copy"} {
		t.Run(driver, func(t *testing.T) {
			cfg := config(t, filepath.Join(t.TempDir(), "store"))
			cfg.Snapshotter = driver
			s := open(t, cfg)
			srv := serve(t)
			srv.Put("img", "v1", threeLayers().Build())
			srv.Put("long", "v1", imagetest.Image{Layers: manyLayers(20)}.Build())
			img, long := pull(t, s, srv.Host+"/img:v1"), pull(t, s, srv.Host+"/long:v1")
			first, err := s.Snapshot(t.Context(), "first", long.ID)
			if err != nil {
				t.Fatal(err)
			}
			mine := first.Upper + first.Path
			if err := os.WriteFile(filepath.Join(mine, "secret"), []byte("s"), 0o644); err != nil {
				t.Fatal(err)
			}
			for _, err := range []error{os.Chmod(mine, 0o777), unix.Setxattr(mine, "trusted.x", []byte("y"), 0), os.Chown(mine, 7, 7)} {
				if err != nil {
					t.Fatal(err)
				}
			}
			if first.Work != "" { // as a mount leaves it
				if err := os.MkdirAll(filepath.Join(first.Work, "work/incompat/volatile"), 0o700); err != nil {
					t.Fatal(err)
				}
			}
			var before, after unix.Stat_t
			dir := filepath.Join(cfg.Root, "snapshots/first")
			if err := unix.Stat(dir, &before); err != nil {
				t.Fatal(err)
			}
			if err := s.RemoveSnapshot(t.Context(), "first"); err != nil {
				t.Fatal(err)
			}
			removed(t, cfg.Root, 1)
			if _, err := s.Snapshot(t.Context(), "second", img.ID); err != nil { // its record is shorter
				t.Fatal(err)
			}
			dir = filepath.Join(cfg.Root, "snapshots/second")
			if err := unix.Stat(dir, &after); err != nil || after.Ino != before.Ino || after.Mode != before.Mode {
				t.Errorf("directory %d with mode %o, want %d with %o (%v)", after.Ino, after.Mode, before.Ino, before.Mode, err)
			}
			if n := len(reused(t, cfg.Root)); n != 0 {
				t.Errorf("%d directories still to be used", n)
			}
			_ = s.Close()
			s = open(t, cfg) // the record is whole
			r, err := s.Snapshot(t.Context(), "second", img.ID)
			if err != nil {
				t.Fatal(err)
			}
			mine = r.Upper + r.Path
			if names, err := os.ReadDir(mine); err != nil || r.Upper != "" && len(names) > 0 {
				t.Errorf("in the new layer: %v %v", names, err)
			}
			if _, err := os.Lstat(filepath.Join(mine, "secret")); err == nil {
				t.Error("what the other container wrote is seen")
			}
			var st unix.Stat_t
			if err := unix.Stat(mine, &st); err != nil || st.Mode&0o7777 != 0o755 || st.Uid != 0 {
				t.Errorf("mode %o, owner %d, %v", st.Mode, st.Uid, err)
			}
			if n, err := unix.Getxattr(mine, "trusted.x", nil); err == nil {
				t.Errorf("an attribute of %d bytes is left", n)
			}
			f, err := r.View()
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if b, err := f.ReadFile("bin/sh"); err != nil || string(b) != "v2" {
				t.Errorf("bin/sh: %q %v", b, err)
			}
		})
	}
}

func manyLayers(n int) (out []imagetest.Layer) {
	for i := range n {
		out = append(out, imagetest.Files(map[string]imagetest.File{fmt.Sprintf("f%d", i): file("x")}))
	}
	return out
}

// TestSpread: on ext4 the flag is set on the directory where snapshots are made, and not on them; of what was used before, the
// directory that was out of use for longest is the next one.
func TestSpread(t *testing.T) {
	testns.Root(t)
	cfg := config(t, filepath.Join(t.TempDir(), "store"))
	s := open(t, cfg)
	srv := serve(t)
	srv.Put("img", "v1", oneLayer().Build())
	img := pull(t, s, srv.Host+"/img:v1")
	dir := func(key string) os.FileInfo {
		t.Helper()
		if _, err := s.Snapshot(t.Context(), key, img.ID); err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(filepath.Join(cfg.Root, "snapshots", key))
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	a, b := dir("a"), dir("b")
	var fs unix.Statfs_t
	if err := unix.Statfs(cfg.Root, &fs); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{"reuse": true, "snapshots/a": false, "snapshots/a/fs": false, "ingest": false} {
		f, err := os.Open(filepath.Join(cfg.Root, name))
		if err != nil {
			t.Fatal(err)
		}
		flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
		_ = f.Close()
		if fs.Type == unix.EXT4_SUPER_MAGIC && (err != nil || flags&0x20000 != 0 != want) {
			t.Errorf("%s: flags %x (%v)", name, flags, err)
		}
	}
	for n, key := range []string{"a", "b"} {
		if err := s.RemoveSnapshot(t.Context(), key); err != nil {
			t.Fatal(err)
		}
		removed(t, cfg.Root, n+1)
	}
	if c, d := dir("c"), dir("d"); !os.SameFile(a, c) || !os.SameFile(b, d) {
		t.Error("not in the order in which they were retired")
	}
}

// TestReuseIsBounded: what many removals leave is little, and nothing after the store is closed or was killed.
func TestReuseIsBounded(t *testing.T) {
	testns.Root(t)
	cfg := config(t, filepath.Join(t.TempDir(), "store"))
	s := open(t, cfg)
	srv := serve(t)
	srv.Put("img", "v1", oneLayer().Build())
	img := pull(t, s, srv.Host+"/img:v1")
	var wg sync.WaitGroup
	for i := range smallfile.Enough + 20 {
		wg.Go(func() {
			key := fmt.Sprintf("c%d", i)
			if _, err := s.Snapshot(t.Context(), key, img.ID); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, key := range s.Snapshots() {
		if err := s.RemoveSnapshot(t.Context(), key); err != nil {
			t.Error(err)
		}
	}
	removed(t, cfg.Root, smallfile.Enough)
	_ = s.Close()
	if left := reused(t, cfg.Root); len(left) > 0 {
		t.Errorf("after the end: %v", left)
	}
	if err := os.MkdirAll(filepath.Join(cfg.Root, "reuse/killed/fs/x"), 0o700); err != nil {
		t.Fatal(err)
	}
	open(t, cfg)
	if left := reused(t, cfg.Root); len(left) > 0 {
		t.Errorf("after a start: %v", left)
	}
}

// TestReuseRefused: a directory whose record is none of its own is removed as a whole.
func TestReuseRefused(t *testing.T) {
	testns.Root(t)
	outside := filepath.Join(t.TempDir(), "outside")
	for name, change := range map[string]func(record string) error{
		"gone":      os.Remove,
		"a link":    func(r string) error { return firstError(os.Remove(r), os.Symlink(outside, r)) },
		"hard link": func(r string) error { return os.Link(r, outside+strings.ReplaceAll(t.Name(), "/", "-")) },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config(t, filepath.Join(t.TempDir(), "store"))
			s := open(t, cfg)
			srv := serve(t)
			srv.Put("img", "v1", oneLayer().Build())
			img := pull(t, s, srv.Host+"/img:v1")
			if _, err := s.Snapshot(t.Context(), "c1", img.ID); err != nil {
				t.Fatal(err)
			}
			if err := change(filepath.Join(cfg.Root, "snapshots/c1/snapshot.json")); err != nil {
				t.Fatal(err)
			}
			if err := s.RemoveSnapshot(t.Context(), "c1"); err != nil {
				t.Fatal(err)
			}
			removed(t, cfg.Root, 0)
			if _, err := s.Snapshot(t.Context(), "c2", img.ID); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Lstat(outside); err == nil {
				t.Error("written through the link")
			}
		})
	}
}

func firstError(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
