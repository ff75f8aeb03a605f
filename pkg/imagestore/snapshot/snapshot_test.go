package snapshot_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore/snapshot"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore/unpack"
	"github.com/seed-9a14075a/cri-server/pkg/rootfs"
)

func TestMain(m *testing.M) { testns.Main(m) }

// entry is "name", or "name=content", "name->symlink", "name=>hard link", "name/".
type entry = string

// stack unpacks layers, each a list of entries.
func stack(t *testing.T, base string, form unpack.MarkForm, layers ...[]entry) []snapshot.Layer {
	t.Helper()
	var out []snapshot.Layer
	for i, l := range layers {
		var buf bytes.Buffer
		tw := tar.NewWriter(&buf)
		for _, e := range l {
			if err := tw.WriteHeader(header(e)); err != nil {
				t.Fatal(err)
			}
			if _, content, ok := strings.Cut(e, "="); ok && !strings.Contains(e, "=>") {
				_, _ = tw.Write([]byte(content))
			}
		}
		_ = tw.Close()
		dir := filepath.Join(base, string(rune('a'+i)))
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			t.Fatal(err)
		}
		res, err := unpack.Apply(t.Context(), &buf, fd, unpack.Options{Limits: unpack.DefaultLimits(), Marks: form})
		_ = unix.Close(fd)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, snapshot.Layer{FS: dir, Marks: func() (unpack.Marks, error) { return res.Marks, nil }})
	}
	return out
}

func header(e entry) *tar.Header {
	h := &tar.Header{Name: e, Typeflag: tar.TypeReg, Mode: 0o644}
	if name, to, ok := strings.Cut(e, "=>"); ok {
		h.Name, h.Linkname, h.Typeflag = name, to, tar.TypeLink
	} else if name, to, ok := strings.Cut(e, "->"); ok {
		h.Name, h.Linkname, h.Typeflag = name, to, tar.TypeSymlink
	} else if name, content, ok := strings.Cut(e, "="); ok {
		h.Name, h.Size = name, int64(len(content))
	} else if strings.HasSuffix(e, "/") {
		h.Typeflag, h.Mode = tar.TypeDir, 0o755
		if strings.HasPrefix(e, "private") { // a mode of its own, to see who described a directory
			h.Mode, h.Uid = 0o700, 12
		}
		if e == "./" {
			h.Mode = 0o711
		}
	}
	return h
}

// place is a driver and a directory on a file system that it works on.
type place struct {
	snapshot.Driver
	root string
}

func driver(t *testing.T, name string) place {
	t.Helper()
	root := t.TempDir()
	if name == "btrfs" {
		root = onBtrfs(t)
	}
	d, _, err := snapshot.Open(name, root)
	if err != nil {
		if _, missing := exec.LookPath(name); name == "fuse-overlayfs" && missing != nil {
			t.Skip("fuse-overlayfs is not installed (Debian package fuse-overlayfs)")
		}
		t.Fatal(err)
	}
	return place{d, root}
}

func tempDir(t *testing.T, p place) string {
	t.Helper()
	dir, err := os.MkdirTemp(p.root, "t")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// onBtrfs mounts a fresh btrfs in a loop file.
func onBtrfs(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("mkfs.btrfs"); err != nil {
		t.Skip("mkfs.btrfs is not installed (Debian package btrfs-progs)")
	}
	img, dir := filepath.Join(t.TempDir(), "btrfs"), t.TempDir()
	for _, c := range [][]string{{"truncate", "-s", "300M", img}, {"mkfs.btrfs", "-q", img}, {"mount", "-o", "loop", img, dir}} {
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", c, err, out)
		}
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// mount shows a root file system for reading; overlays are mounted.
func mount(t *testing.T, r rootfs.Rootfs) string {
	t.Helper()
	if r.Path != "" {
		return r.Path
	}
	dir := t.TempDir()
	if r.Fuse != "" {
		if err := r.MountAt(dir, rootfs.Options{}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(dir, 0) })
		return dir
	}
	opts := "lowerdir=" + strings.Join(r.Lower, ":")
	if r.Upper != "" {
		opts += ",upperdir=" + r.Upper + ",workdir=" + r.Work
	} else if len(r.Lower) == 1 {
		t.Fatal("a single lower layer without an upper can't be mounted")
	}
	if err := unix.Mount("overlay", dir, "overlay", 0, opts); err != nil {
		t.Fatal(opts, err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, 0) })
	return dir
}

// tree lists files as "name=content", "name->target", "name/" (and ":mode uid" where it isn't 0755 root).
func tree(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, _ := filepath.Rel(dir, p)
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		switch {
		case d.IsDir():
			name += "/"
			if st.Mode&0o7777 != 0o755 || st.Uid != 0 {
				name += ":" + fs.FileMode(st.Mode&0o7777).String() + " " + string(rune('0'+st.Uid%10))
			}
		case d.Type()&fs.ModeSymlink != 0:
			to, err := os.Readlink(p)
			if err != nil {
				return err
			}
			name += "->" + to
		case d.Type().IsRegular():
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			name += "=" + string(b)
		default:
			name += "?" + d.Type().String()
		}
		out = append(out, name)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestDrivers is the suite that every driver passes.
func TestDrivers(t *testing.T) {
	testns.Root(t)
	cases := map[string]struct {
		layers [][]entry
		want   []string
	}{
		"no layers":           {nil, []string{"./"}},
		"empty layer":         {[][]entry{{}}, []string{"./"}},
		"one layer":           {[][]entry{{"a=1", "d/", "d/b=2", "l->a"}}, []string{"./", "a=1", "d/", "d/b=2", "l->a"}},
		"override":            {[][]entry{{"a=1", "b=1"}, {"a=2"}}, []string{"./", "a=2", "b=1"}},
		"whiteout":            {[][]entry{{"d/", "d/a=1", "d/b=1"}, {"d/", "d/.wh.a"}}, []string{"./", "d/", "d/b=1"}},
		"whiteout directory":  {[][]entry{{"d/", "d/a=1"}, {".wh.d"}}, []string{"./"}},
		"opaque":              {[][]entry{{"d/", "d/a=1"}, {"d/", "d/.wh..wh..opq", "d/b=2"}}, []string{"./", "d/", "d/b=2"}},
		"whiteout and again":  {[][]entry{{"d/", "d/a=1"}, {".wh.d"}, {"d/", "d/b=2"}}, []string{"./", "d/", "d/b=2"}},
		"replaced in layer":   {[][]entry{{"d/", "d/a=1"}, {".wh.d", "d/", "d/b=2"}}, []string{"./", "d/", "d/b=2"}},
		"file over directory": {[][]entry{{"d/", "d/a=1"}, {"d=2"}}, []string{"./", "d=2"}},
		"directory over file": {[][]entry{{"d=1"}, {"d/", "d/a=2"}}, []string{"./", "d/", "d/a=2"}},
		"bottom whiteout":     {[][]entry{{".wh.x", "a=1"}, {"b=2"}}, []string{"./", "a=1", "b=2"}},
		"only a whiteout":     {[][]entry{{".wh.x", "a=1"}}, []string{"./", "a=1"}},
		"root described":      {[][]entry{{"./", "a=1"}, {"b=2"}}, []string{"./:-rwx--x--x 0", "a=1", "b=2"}},
		"implied keeps mode":  {[][]entry{{"private/", "private/a=1"}, {"private/b=2"}}, []string{"./", "private/:-rwx------ 2", "private/a=1", "private/b=2"}},
		"implied twice":       {[][]entry{{"private/", "private/x/", "private/x/a=1"}, {"private/x/b=2"}, {"private/x/c=3"}}, []string{"./", "private/:-rwx------ 2", "private/x/:-rwx------ 2", "private/x/a=1", "private/x/b=2", "private/x/c=3"}},
		"implied after opaque": {
			[][]entry{{"private/", "private/a=1"}, {".wh.private"}, {"private/b=2"}},
			[]string{"./", "private/", "private/b=2"},
		},
		"implied then removed": {[][]entry{{"private/", "private/a=1"}, {"private/b=2"}, {".wh.private"}}, []string{"./"}},
		"described above":      {[][]entry{{"private/"}, {"private/b=2"}, {"private/"}}, []string{"./", "private/:-rwx------ 2", "private/b=2"}},
		"link below":           {[][]entry{{"bin/", "bin/a=1"}, {"bin/", "bin/b=>bin/a"}}, []string{"./", "bin/", "bin/a=1", "bin/b=1"}},
		"link below changed":   {[][]entry{{"a=1"}, {"a=2"}, {"d/", "d/b=>a"}}, []string{"./", "a=2", "d/", "d/b=2"}},
		"link below hidden":    {[][]entry{{"a=1"}, {"b=>a"}, {"b=3"}}, []string{"./", "a=1", "b=3"}},
		"hard links":           {[][]entry{{"a=1", "d/", "d/b=>a"}}, []string{"./", "a=1", "d/", "d/b=1"}},
	}
	forms := map[string][]unpack.MarkForm{
		// The store lays other forms down in this one before it uses the layers.
		"overlay":        {unpack.MarksTrusted},
		"fuse-overlayfs": {unpack.MarksTrusted, unpack.MarksFiles},
		"copy":           {unpack.MarksTrusted, unpack.MarksFiles, unpack.MarksNone},
		"btrfs":          {unpack.MarksTrusted, unpack.MarksNone},
	}
	for _, name := range snapshot.Names {
		d := driver(t, name)
		for _, form := range forms[name] {
			for _, c := range slices.Sorted(maps.Keys(cases)) {
				t.Run(name+"/"+string(form)+"/"+c, func(t *testing.T) {
					layers := stack(t, tempDir(t, d), form, cases[c].layers...)
					dir := tempDir(t, d)
					if err := d.Prepare(t.Context(), dir, layers); err != nil {
						t.Fatal(err)
					}
					if got := tree(t, mount(t, d.Rootfs(dir, layers))); !slices.Equal(got, cases[c].want) {
						t.Errorf("got  %v\nwant %v", got, cases[c].want)
					}
					if _, n, err := d.Usage(dir); err != nil || n < 1 {
						t.Error(n, err)
					}
					if v, ok := d.View(layers); ok {
						got := tree(t, mount(t, v))
						if len(got) > 0 && len(cases[c].want) > 0 { // a view's root is the topmost layer's
							got[0] = cases[c].want[0]
						}
						if !slices.Equal(got, cases[c].want) {
							t.Errorf("view: got  %v\nwant %v", got, cases[c].want)
						}
					}
				})
			}
		}
	}
}

// TestRepeatedLayer stacks one layer twice, as docker's empty layers are.
func TestRepeatedLayer(t *testing.T) {
	testns.Root(t)
	for _, name := range snapshot.Names {
		d := driver(t, name)
		layers := stack(t, tempDir(t, d), unpack.MarksTrusted, []entry{"a=1", "d/", "d/x=1"}, []entry{".wh.d", "a=2"})
		layers = append(layers, layers[0])
		dir := tempDir(t, d)
		if err := d.Prepare(t.Context(), dir, layers); err != nil {
			t.Fatal(err)
		}
		if got, want := tree(t, mount(t, d.Rootfs(dir, layers))), []string{"./", "a=1", "d/", "d/x=1"}; !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", name, got, want)
		}
	}
}

func TestOpen(t *testing.T) {
	testns.Root(t)
	if _, _, err := snapshot.Open("zfs", t.TempDir()); !errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
	root := t.TempDir()
	d, why, err := snapshot.Open("auto", root)
	if err != nil || d.Name() != "overlay" || why == "" {
		t.Errorf("%v %q %v", d, why, err)
	}
	if left, _ := os.ReadDir(root); len(left) != 0 {
		t.Errorf("probing left %v", left)
	}
	// An overlay can't be the upper layer of another: auto falls back, overlay says so.
	l := t.TempDir()
	for _, sub := range []string{"lower", "upper", "work", "mnt"} {
		if err := os.Mkdir(filepath.Join(l, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	mnt := filepath.Join(l, "mnt")
	if err := unix.Mount("overlay", mnt, "overlay", 0, "lowerdir="+l+"/lower,upperdir="+l+"/upper,workdir="+l+"/work"); err != nil {
		t.Skip("no overlay:", err)
	}
	defer func() { _ = unix.Unmount(mnt, unix.MNT_DETACH) }() // fuse-overlayfs may take a moment to go
	want := "copy"
	if _, err := exec.LookPath("fuse-overlayfs"); err == nil {
		want = "fuse-overlayfs"
	}
	if d, why, err := snapshot.Open("auto", mnt); err != nil || d.Name() != want || !strings.HasPrefix(why, "overlay: ") {
		t.Errorf("on overlay: %v %q %v", d, why, err)
	}
	if _, _, err := snapshot.Open("overlay", mnt); !errors.Is(err, errdefs.ErrFailedPrecondition) {
		t.Errorf("on overlay: %v", err)
	}
}

// TestWritten looks at what a driver says that a container wrote, and at two containers of one image.
func TestWritten(t *testing.T) {
	testns.Root(t)
	for _, name := range snapshot.Names {
		t.Run(name, func(t *testing.T) {
			d := driver(t, name)
			layers := stack(t, tempDir(t, d), d.Marks(), []entry{"a=1", "big=" + strings.Repeat("x", 1<<20)}, []entry{"b=2"})
			base, dir := tempDir(t, d), tempDir(t, d)
			if err := d.Prepare(t.Context(), base, layers); err != nil {
				t.Fatal(err)
			}
			if c, ok := d.Driver.(snapshot.Cloner); ok {
				if err := c.Clone(dir, base); err != nil {
					t.Fatal(err)
				}
			} else if err := d.Prepare(t.Context(), dir, layers); err != nil {
				t.Fatal(err)
			}
			before, inodes, err := d.Usage(dir)
			if err != nil {
				t.Fatal(err)
			}
			if name != "copy" && before > 64<<10 {
				t.Errorf("%d bytes before anything was written", before)
			}
			root := mount(t, d.Rootfs(dir, layers))
			for f, n := range map[string]int{"new": 2 << 20, "a": 300_000} {
				if err := os.WriteFile(filepath.Join(root, f), bytes.Repeat([]byte("y"), n), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			unix.Sync()
			after, more, err := d.Usage(dir)
			if err != nil || after-before < 2<<20+290_000 || after-before > 3<<20 || more <= inodes {
				t.Errorf("%d bytes, %d inodes after %d, %d: %v", after, more, before, inodes, err)
			}
			other := tree(t, mount(t, d.Rootfs(base, layers)))
			if len(other) != 4 || other[1] != "a=1" {
				t.Errorf("the other snapshot: %.100v", other)
			}
			if x, ok := d.Driver.(snapshot.Discarder); ok && name == "btrfs" { // others stop at what was written
				x.Discard(dir)
				if left, _ := os.ReadDir(dir); len(left) > 0 {
					t.Errorf("left: %v", left)
				}
			}
		})
	}
}
