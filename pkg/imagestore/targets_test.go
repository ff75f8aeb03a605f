package imagestore_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore/imagetest"
	"github.com/seed-9a14075a/cri-server/pkg/rootfs"
)

var commonTargets = []imagestore.Target{
	{Path: "/proc", Dir: true}, {Path: "/dev", Dir: true}, {Path: "/etc/resolv.conf"}, {Path: "/etc/hosts"},
	{Path: "/run/secrets/token", Dir: true},
}

// withTargets makes a snapshot of an image of one of layers, and lays targets below.
func withTargets(t *testing.T, s *imagestore.Disk, key string, targets []imagestore.Target, layers ...imagetest.Layer) rootfs.Rootfs {
	t.Helper()
	srv := serve(t)
	srv.Put("img", "v1", imagetest.Image{Layers: layers}.Build())
	img := pull(t, s, srv.Host+"/img:v1")
	r, err := s.Snapshot(t.Context(), key, img.ID)
	if err != nil {
		t.Fatal(err)
	}
	return s.MountTargets(r, targets)
}

// targetDirs lists the layers of mount points on disk.
func targetDirs(t *testing.T, root string) []string {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join(root, "targets/*"))
	if err != nil {
		t.Fatal(err)
	}
	return dirs
}

// TestMountTargets looks at an image's root with shared mount points below it: what the image says of a path comes first,
// and what it doesn't have looks as an engine would have made it.
func TestMountTargets(t *testing.T) {
	testns.Root(t)
	type files = map[string]imagetest.File
	link := func(to string) imagetest.File { return imagetest.File{Link: to} }
	for name, c := range map[string]struct {
		layers    []files
		has, none []string // "dir/" or "file"
	}{
		"nothing there":     {[]files{{"bin/sh": file("x")}}, []string{"proc/", "dev/", "etc/", "etc/hosts", "etc/resolv.conf", "run/secrets/token/"}, []string{"sys", "etc/hostname"}},
		"its own":           {[]files{{"etc/hosts": file("127.0.0.1 me"), "etc/passwd": file("root")}}, []string{"etc/hosts=127.0.0.1 me", "etc/passwd=root", "etc/resolv.conf"}, nil},
		"etc a link":        {[]files{{"etc": link("usr/etc"), "usr/etc/passwd": file("root")}}, []string{"usr/etc/passwd=root"}, []string{"usr/etc/hosts", "etc/hosts"}},
		"etc a dangling":    {[]files{{"etc": link("/nowhere"), "bin/sh": file("x")}}, nil, []string{"nowhere", "etc/hosts"}},
		"etc a file":        {[]files{{"etc": file("no directory")}}, []string{"etc=no directory", "proc/"}, nil},
		"a file a link":     {[]files{{"etc/hosts": link("../secret"), "secret": file("s")}}, []string{"secret=s", "etc/resolv.conf"}, nil},
		"proc a link":       {[]files{{"proc": link("etc"), "etc/passwd": file("root")}}, []string{"etc/passwd=root"}, nil},
		"directory at file": {[]files{{"etc/hosts/x": file("x")}}, []string{"etc/hosts/", "etc/hosts/x=x"}, nil},
		"file whited out":   {[]files{{"etc/hosts": file("old"), "etc/passwd": file("root")}, {"etc/.wh.hosts": {}}}, []string{"etc/passwd=root", "etc/resolv.conf"}, []string{"etc/hosts"}},
		"directory whited out": {[]files{{"etc/hosts": file("old"), "bin/sh": file("x")}, {".wh.etc": {}}}, []string{"proc/"},
			[]string{"etc", "etc/hosts", "etc/resolv.conf"}},
		"opaque directory": {[]files{{"etc/old": file("old"), "bin/sh": file("x")}, {"etc/.wh..wh..opq": {}, "etc/new": file("new")}},
			[]string{"etc/new=new", "proc/"}, []string{"etc/old", "etc/hosts", "etc/resolv.conf"}},
		"a whiteout of nothing": {[]files{{"etc/.wh.hosts": {}, "etc/passwd": file("root")}}, []string{"etc/passwd=root", "etc/resolv.conf"}, []string{"etc/hosts"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, config(t, filepath.Join(t.TempDir(), "store")))
			var layers []imagetest.Layer
			for _, l := range c.layers {
				layers = append(layers, imagetest.Files(l))
			}
			r := withTargets(t, s, "c1", commonTargets, layers...)
			root, err := r.View()
			if err != nil {
				t.Fatal(err)
			}
			defer root.Close()
			for _, want := range c.has {
				checkEntry(t, root, want)
			}
			for _, p := range c.none {
				if st, err := root.Lstat(p); err == nil && st.Mode()&fs.ModeSymlink == 0 {
					t.Errorf("%s is there", p)
				}
			}
			if u, err := s.SnapshotUsage("c1"); err != nil || u.Inodes > 1 {
				t.Errorf("the writable layer holds %d inodes (%v), want its root alone", u.Inodes, err)
			}
		})
	}
}

// checkEntry wants a file, "dir/", or "file=content".
func checkEntry(t *testing.T, root *os.Root, want string) {
	t.Helper()
	name, content, _ := strings.Cut(want, "=")
	st, err := root.Lstat(name)
	if err != nil {
		t.Error(err)
		return
	}
	if st.IsDir() != strings.HasSuffix(want, "/") {
		t.Errorf("%s is %s", name, st.Mode())
	}
	sys := st.Sys().(*syscall.Stat_t)
	if mode := st.Mode().Perm(); sys.Uid != 0 || sys.Gid != 0 || st.IsDir() && mode != 0o755 || !st.IsDir() && mode != 0o644 {
		t.Errorf("%s has mode %s and belongs to %d:%d", name, st.Mode(), sys.Uid, sys.Gid)
	}
	if st.IsDir() {
		return
	}
	if b, err := root.ReadFile(name); err != nil || string(b) != content {
		t.Errorf("%s holds %q (%v), want %q", name, b, err, content)
	}
}

// TestMountTargetsAreShared: one directory per set, whatever its order, and it is there after the next start.
func TestMountTargetsAreShared(t *testing.T) {
	testns.Root(t)
	defer syscall.Umask(syscall.Umask(0o077)) // what is made doesn't depend on it
	cfg := config(t, filepath.Join(t.TempDir(), "store"))
	s := open(t, cfg)
	layer := imagetest.Files(map[string]imagetest.File{"bin/sh": file("x")})
	first := withTargets(t, s, "c1", commonTargets, layer)
	turned := slices.Clone(commonTargets)
	slices.Reverse(turned)
	second := withTargets(t, s, "c2", turned, layer)
	if a, b := first.Lower[len(first.Lower)-1], second.Lower[len(second.Lower)-1]; a != b || len(first.Lower) != 2 {
		t.Errorf("layers %v and %v", first.Lower, second.Lower)
	}
	other := withTargets(t, s, "c3", commonTargets[:1], layer)
	if dirs := targetDirs(t, cfg.Root); len(dirs) != 2 || !slices.Contains(dirs, other.Lower[1]) {
		t.Errorf("on disk: %v, want two sets", dirs)
	}
	if _, err := s.Prune(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if err := s.Sweep(); err != nil {
		t.Fatal(err)
	}
	if g := s.Garbage(); len(g) > 0 {
		t.Errorf("garbage: %v", g)
	}
	_ = s.Close()
	open(t, cfg)
	if dirs := targetDirs(t, cfg.Root); len(dirs) != 2 {
		t.Errorf("after a start: %v, want two sets", dirs)
	}
	root, err := first.View()
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	checkEntry(t, root, "etc/hosts")
}

// TestMountTargetsDamaged: a set that is gone is made anew; the next start removes what is not what its name says.
func TestMountTargetsDamaged(t *testing.T) {
	testns.Root(t)
	for name, c := range map[string]struct {
		damage func(dir string) error
		kept   int
	}{
		"nothing":     {func(string) error { return nil }, 1},
		"gone":        {os.RemoveAll, 0},
		"half made":   {func(d string) error { return os.Remove(filepath.Join(d, "etc/hosts")) }, 0},
		"empty":       {func(d string) error { return errors.Join(os.RemoveAll(d), os.Mkdir(d, 0o755)) }, 0},
		"a file more": {func(d string) error { return os.WriteFile(filepath.Join(d, "etc/shadow"), nil, 0o644) }, 0},
		"content":     {func(d string) error { return os.WriteFile(filepath.Join(d, "etc/hosts"), []byte("evil"), 0o644) }, 0},
		"writable":    {func(d string) error { return os.Chmod(filepath.Join(d, "etc"), 0o777) }, 0},
		"setuid":      {func(d string) error { return os.Chmod(filepath.Join(d, "etc/hosts"), 0o644|os.ModeSetuid) }, 0},
		"owned":       {func(d string) error { return os.Chown(filepath.Join(d, "proc"), 7, 7) }, 0},
		"a link":      {func(d string) error { return os.Symlink("/etc/shadow", filepath.Join(d, "x")) }, 0},
		"a hard link": {func(d string) error { return os.Link(filepath.Join(d, "etc/hosts"), filepath.Join(d, "../../hosts")) }, 0},
		"a file":      {func(d string) error { return errors.Join(os.RemoveAll(d), os.WriteFile(d, nil, 0o644)) }, 0},
		"a stray":     {func(d string) error { return os.Mkdir(filepath.Join(d, "../stray"), 0o755) }, 1},
		"a huge tree": {func(d string) error { return deepTree(filepath.Join(d, "x"), 2000) }, 0},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config(t, filepath.Join(t.TempDir(), "store"))
			s := open(t, cfg)
			layer := imagetest.Files(map[string]imagetest.File{"bin/sh": file("x")})
			r := withTargets(t, s, "c1", commonTargets, layer)
			_ = s.Close()
			if err := c.damage(r.Lower[1]); err != nil {
				t.Fatal(err)
			}
			s = open(t, cfg)
			if dirs := targetDirs(t, cfg.Root); len(dirs) != c.kept {
				t.Errorf("after a start: %v, want %d", dirs, c.kept)
			}
			root, err := withTargets(t, s, "c2", commonTargets, layer).View()
			if err != nil {
				t.Fatal(err)
			}
			defer root.Close()
			checkEntry(t, root, "etc/hosts")
			checkEntry(t, root, "proc/")
			if _, err := root.Lstat("x"); err == nil {
				t.Error("what was put there is seen in a container")
			}
		})
	}
}

func deepTree(name string, depth int) error {
	back, err := os.Getwd()
	if err != nil {
		return err
	}
	for range depth {
		if err := os.Mkdir(name, 0o755); err != nil {
			return err
		}
		if err := os.Chdir(name); err != nil {
			return err
		}
		name = "d"
	}
	return os.Chdir(back)
}

// TestMountTargetsRefused: then the container's own layer gets them, as ever.
func TestMountTargetsRefused(t *testing.T) {
	testns.Root(t)
	many := make([]imagestore.Target, 40)
	for i := range many {
		many[i] = imagestore.Target{Path: "/" + strings.Repeat("x", i+1)}
	}
	for name, targets := range map[string][]imagestore.Target{
		"none":              nil,
		"relative":          {{Path: "etc/hosts"}},
		"leaves the root":   {{Path: "/etc/../../hosts"}},
		"the root":          {{Path: "/", Dir: true}},
		"two lines":         {{Path: "/a\nb"}},
		"one in another":    {{Path: "/etc", Dir: true}, {Path: "/etc/hosts"}},
		"directory or file": {{Path: "/etc", Dir: true}, {Path: "/etc"}},
		"many":              many,
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config(t, filepath.Join(t.TempDir(), "store"))
			s := open(t, cfg)
			r := withTargets(t, s, "c1", targets, imagetest.Files(map[string]imagetest.File{"bin/sh": file("x")}))
			if len(r.Lower) != 1 || len(targetDirs(t, cfg.Root)) > 0 {
				t.Errorf("layers %v, want the image's", r.Lower)
			}
		})
	}
}

// TestMountTargetsElsewhere: where layers are not stacked by the kernel, nothing changes.
func TestMountTargetsElsewhere(t *testing.T) {
	testns.Root(t)
	cfg := config(t, filepath.Join(t.TempDir(), "store"))
	cfg.Snapshotter = "copy"
	r := withTargets(t, open(t, cfg), "c1", commonTargets, imagetest.Files(map[string]imagetest.File{"bin/sh": file("x")}))
	if r.Path == "" || len(r.Lower) > 0 || len(targetDirs(t, cfg.Root)) > 0 {
		t.Errorf("root file system %+v", r)
	}
}

// TestMountTargetsFullDisk: a set that can't be made costs no container.
func TestMountTargetsFullDisk(t *testing.T) {
	testns.Root(t)
	cfg := config(t, filepath.Join(t.TempDir(), "store"))
	s := open(t, cfg)
	if err := os.WriteFile(filepath.Join(cfg.Root, "targets"), nil, 0o600); err != nil { // in the way
		t.Fatal(err)
	}
	layer := imagetest.Files(map[string]imagetest.File{"bin/sh": file("x")})
	if r := withTargets(t, s, "c1", commonTargets, layer); len(r.Lower) != 1 {
		t.Errorf("layers %v, want the image's", r.Lower)
	}
	if left, err := os.ReadDir(filepath.Join(cfg.Root, "ingest")); err != nil || len(left) > 0 {
		t.Errorf("left in ingest: %v, %v", left, err)
	}
	if err := os.Remove(filepath.Join(cfg.Root, "targets")); err != nil {
		t.Fatal(err)
	}
	if r := withTargets(t, s, "c2", commonTargets, layer); len(r.Lower) != 2 {
		t.Errorf("layers %v, want the mount points below the image's", r.Lower)
	}
}
