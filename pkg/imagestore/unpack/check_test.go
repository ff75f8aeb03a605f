package unpack_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore/unpack"
)

// TestCheck damages an unpacked layer in many ways; each is found, and nothing else.
func TestCheck(t *testing.T) {
	testns.Root(t)
	big := strings.Repeat("large file ", 20_000)
	layer := stream(t, dirh("etc/"), reg("etc/passwd", "root:x:0:0"), reg("etc/shadow", "secret"), sym("etc/link", "passwd"),
		hard("etc/hard", "etc/passwd"), reg("big", big), dirh("d/"), reg("d/e/f", "implied parent"), reg(".wh.gone", ""),
		tar.Header{Name: "fifo", Typeflag: tar.TypeFifo, Mode: 0o600}, reg("twice", "first"), reg("twice", "second"))
	for name, c := range map[string]struct {
		damage  func(dir string) error
		paths   string
		shallow bool // also found without reading content
	}{
		"nothing":             {func(string) error { return nil }, "", true},
		"flipped byte":        {func(d string) error { return flip(filepath.Join(d, "etc/shadow"), 3) }, "etc/shadow", false},
		"flipped in big file": {func(d string) error { return flip(filepath.Join(d, "big"), 150_000) }, "big", false},
		"empty file":          {func(d string) error { return os.Truncate(filepath.Join(d, "etc/shadow"), 0) }, "etc/shadow", true},
		"cut":                 {func(d string) error { return os.Truncate(filepath.Join(d, "big"), 4096) }, "big", true},
		"grown":               {func(d string) error { return os.Truncate(filepath.Join(d, "big"), 1<<20) }, "big", true},
		"missing":             {func(d string) error { return os.Remove(filepath.Join(d, "d/e/f")) }, "d/e/f", true},
		"missing tree":        {func(d string) error { return os.RemoveAll(filepath.Join(d, "d")) }, "d d/e d/e/f", true},
		"stray":               {func(d string) error { return os.WriteFile(filepath.Join(d, "d/x"), nil, 0o644) }, "d/x", true},
		"mode":                {func(d string) error { return os.Chmod(filepath.Join(d, "etc/shadow"), 0o666) }, "etc/shadow", true},
		"owner":               {func(d string) error { return os.Lchown(filepath.Join(d, "etc/link"), 5, 5) }, "etc/link", true},
		"type": {func(d string) error {
			p := filepath.Join(d, "fifo")
			return errors.Join(os.Remove(p), os.WriteFile(p, nil, 0o600))
		}, "fifo", true},
		"other link": {func(d string) error {
			p := filepath.Join(d, "etc/link")
			return errors.Join(os.Remove(p), os.Symlink("shadow", p))
		}, "etc/link", true},
		"parted links": {func(d string) error {
			p := filepath.Join(d, "etc/hard")
			return errors.Join(os.Remove(p), os.WriteFile(p, []byte("root:x:0:0"), 0o644))
		}, "etc/hard", true},
		"whiteout gone": {func(d string) error { return os.Remove(filepath.Join(d, "gone")) }, "gone", true},
	} {
		for _, deep := range []bool{true, false} {
			if !deep && !c.shallow {
				continue
			}
			t.Run(fmt.Sprint(name, "/deep=", deep), func(t *testing.T) {
				dir := t.TempDir()
				fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
				if err != nil {
					t.Fatal(err)
				}
				defer unix.Close(fd)
				var manifest bytes.Buffer
				opt := options()
				opt.Manifest = &manifest
				res, err := unpack.Apply(t.Context(), bytes.NewReader(layer), fd, opt)
				if err != nil {
					t.Fatal(err)
				}
				if err := c.damage(dir); err != nil {
					t.Fatal(err)
				}
				var got []string
				if err := unpack.Check(t.Context(), fd, &manifest, res.Marks, deep, func(p unpack.Path, what string) {
					got = append(got, string(p))
				}); err != nil {
					t.Fatal(err)
				}
				slices.Sort(got)
				if s := strings.Join(got, " "); s != c.paths {
					t.Errorf("reported %q, want %q", s, c.paths)
				}
			})
		}
	}
}

func flip(name string, at int64) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var b [1]byte
	if _, err := f.ReadAt(b[:], at); err != nil {
		return err
	}
	b[0] ^= 0x10
	_, err = f.WriteAt(b[:], at)
	return err
}

func TestCheckBadManifest(t *testing.T) {
	dir, err := unix.Open(t.TempDir(), unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(dir)
	for _, m := range []string{"x", "f 644 0 0 1 0 name", "f 9 0 0 1 0 name\x00", "f 644 0 0 1 0\x00", strings.Repeat("a", 20_000) + "\x00"} {
		if err := unpack.Check(t.Context(), dir, strings.NewReader(m), unpack.Marks{}, true, func(unpack.Path, string) {}); !errdefs.IsDataLoss(err) {
			t.Errorf("%.30q: %v", m, err)
		}
	}
}
