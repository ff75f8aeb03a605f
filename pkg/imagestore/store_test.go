package imagestore_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore/imagetest"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore/registry"
)

func TestMain(m *testing.M) { testns.Main(m) }

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(string(p[:len(p)-1]))
	return len(p), nil
}

// config is a store for linux/amd64 with short timeouts.
func config(t testing.TB, root string) imagestore.Config {
	return imagestore.Config{
		Root:     root,
		Platform: &ocispec.Platform{OS: "linux", Architecture: "amd64"},
		Registry: registry.Config{
			CertsDirs: []string{filepath.Join(t.TempDir(), "certs.d")}, StallTimeout: 5 * time.Second,
			Backoff: time.Millisecond, MaxBackoff: 50 * time.Millisecond, Attempts: 3,
		},
		Logger: slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	}
}

func open(t testing.TB, cfg imagestore.Config) *imagestore.Disk {
	t.Helper()
	s, err := imagestore.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func serve(t testing.TB) *imagetest.Server {
	t.Helper()
	s, err := imagetest.Serve("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func file(s string) imagetest.File { return imagetest.File{Content: []byte(s)} }

// threeLayers has a whiteout, an opaque directory and a replaced file.
func threeLayers() imagetest.Image {
	return imagetest.Image{Layers: []imagetest.Layer{
		imagetest.Files(map[string]imagetest.File{"etc/passwd": file("root"), "etc/gone": file("x"), "opt/old/a": file("a"), "bin/sh": file("v1")}),
		imagetest.Files(map[string]imagetest.File{"etc/.wh.gone": {}, "bin/sh": file("v2")}),
		imagetest.Files(map[string]imagetest.File{"opt/old/.wh..wh..opq": {}, "opt/old/b": file("b")}),
	}}
}

func TestPullSnapshotRemove(t *testing.T) {
	testns.Root(t)
	for _, c := range []imagetest.Compression{imagetest.Gzip, imagetest.Zstd, imagetest.Plain} {
		for _, docker := range []bool{false, true} {
			if docker && c == imagetest.Zstd {
				continue
			}
			t.Run(string(c), func(t *testing.T) {
				srv := serve(t)
				img := threeLayers()
				img.Compression, img.Docker = c, docker
				built := img.Build()
				srv.Put("test/three", "v1", built)
				cfg := config(t, t.TempDir())
				s := open(t, cfg)
				empty := s.Usage()
				ref := srv.Host + "/test/three:v1"
				got, err := s.Pull(t.Context(), ref, nil)
				if err != nil {
					t.Fatal(err)
				}
				if got.ID != built.ID.String() || got.Size == 0 {
					t.Errorf("ID %s size %d, want ID %s", got.ID, got.Size, built.ID)
				}
				if want := []string{ref}; !slices.Equal(got.RepoTags, want) {
					t.Errorf("tags %v, want %v", got.RepoTags, want)
				}
				if want := []string{srv.Host + "/test/three@" + built.Manifest.Digest.String()}; !slices.Equal(got.RepoDigests, want) {
					t.Errorf("digests %v, want %v", got.RepoDigests, want)
				}
				checkTree(t, s, got.ID)
				checkUsage(t, s, cfg.Root)
				if err := s.Remove(t.Context(), got.ID); err != nil {
					t.Fatal(err)
				}
				if u := s.Usage(); u.Bytes != empty.Bytes || u.Inodes != empty.Inodes {
					t.Errorf("usage after removal %+v, before the pull %+v", u, empty)
				}
				if _, err := s.Get(ref); !errdefs.IsNotFound(err) {
					t.Errorf("Get after Remove: %v", err)
				}
			})
		}
	}
}

// checkTree makes a snapshot, mounts it and looks at threeLayers' files.
func checkTree(t *testing.T, s *imagestore.Disk, id string) {
	t.Helper()
	root, err := s.Snapshot(t.Context(), "c1", id)
	if err != nil {
		t.Fatal(err)
	}
	dir := root.Path
	if dir == "" {
		dir = t.TempDir()
		lower := root.Lower[0]
		for _, l := range root.Lower[1:] {
			lower += ":" + l
		}
		if err := unix.Mount("overlay", dir, "overlay", 0, "lowerdir="+lower+",upperdir="+root.Upper+",workdir="+root.Work); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = unix.Unmount(dir, 0) }()
	}
	for name, want := range map[string]string{"etc/passwd": "root", "bin/sh": "v2", "opt/old/b": "b"} {
		if b, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v; want %q", name, b, err, want)
		}
	}
	for _, name := range []string{"etc/gone", "opt/old/a"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); !os.IsNotExist(err) {
			t.Errorf("%s is there: %v", name, err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "new"), make([]byte, 1<<20), 0o644); err != nil {
		t.Error(err)
	}
	if u, err := s.SnapshotUsage("c1"); err != nil || u.Bytes < 1<<20 || u.Inodes < 2 {
		t.Errorf("snapshot usage %+v, %v", u, err)
	}
	if root.Path == "" {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.RemoveSnapshot(context.Background(), "c1"); err != nil {
		t.Error(err)
	}
	if keys := s.Snapshots(); len(keys) != 0 {
		t.Errorf("snapshots %v", keys)
	}
}

// checkUsage compares Usage with a walk.
func checkUsage(t *testing.T, s *imagestore.Disk, root string) {
	t.Helper()
	var bytes, inodes uint64
	for _, sub := range []string{"blobs/sha256", "layers/sha256"} {
		base := filepath.Join(root, sub)
		_ = filepath.WalkDir(base, func(p string, _ os.DirEntry, err error) error {
			var st unix.Stat_t
			if err != nil || p == base || unix.Lstat(p, &st) != nil {
				return err
			}
			bytes += uint64(st.Blocks) * 512
			inodes++
			return nil
		})
	}
	if u := s.Usage(); u.Bytes != bytes || u.Inodes != inodes {
		t.Errorf("usage says %d bytes, %d inodes; the disk holds %d, %d", u.Bytes, u.Inodes, bytes, inodes)
	}
}
