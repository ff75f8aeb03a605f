package unpack_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore/unpack"
)

func TestAttributes(t *testing.T) {
	testns.Root(t)
	when := time.Unix(1_234_567_890, 123_456_789)
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	dir, res, err := apply(t, stream(t,
		tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o1777, Uid: 7, Gid: 4294967294, ModTime: when},
		tar.Header{Name: "d/suid", Linkname: "x", Mode: 0o6755, Uid: 1000, Gid: 1001, ModTime: when, PAXRecords: map[string]string{
			"SCHILY.xattr.security.capability": capability, "SCHILY.xattr.user.note": "hello",
		}},
		tar.Header{Name: "d/link", Typeflag: tar.TypeSymlink, Linkname: "/nowhere", Uid: 5, Gid: 6, ModTime: when},
		tar.Header{Name: "d/fifo", Typeflag: tar.TypeFifo, Mode: 0o622, Uid: 8, ModTime: when},
		tar.Header{Name: "d/null", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 3, ModTime: when},
		tar.Header{Name: "d/loop", Typeflag: tar.TypeBlock, Mode: 0o660, Devmajor: 7, Devminor: 300, ModTime: when},
		tar.Header{Name: "d/" + strings.Repeat("l", 255), Linkname: "long", ModTime: when},
		tar.Header{Name: "old", ModTime: time.Unix(-1<<40, 0)},
	), options())
	if err != nil {
		t.Fatal(err)
	}
	checkUsage(t, dir, res)
	for name, want := range map[string]unix.Stat_t{
		"d":      {Mode: unix.S_IFDIR | 0o1777, Uid: 7, Gid: 4294967294},
		"d/suid": {Mode: unix.S_IFREG | 0o6755, Uid: 1000, Gid: 1001},
		"d/link": {Mode: unix.S_IFLNK | 0o777, Uid: 5, Gid: 6},
		"d/fifo": {Mode: unix.S_IFIFO | 0o622, Uid: 8},
		"d/null": {Mode: unix.S_IFCHR | 0o666, Rdev: unix.Mkdev(1, 3)},
		"d/loop": {Mode: unix.S_IFBLK | 0o660, Rdev: unix.Mkdev(7, 300)},
	} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(dir, name), &st); err != nil {
			t.Error(err)
			continue
		}
		if st.Mode != want.Mode || st.Uid != want.Uid || st.Gid != want.Gid || st.Rdev != want.Rdev {
			t.Errorf("%s: mode %o owner %d:%d device %x, want %o %d:%d %x", name, st.Mode, st.Uid, st.Gid, st.Rdev, want.Mode, want.Uid, want.Gid, want.Rdev)
		}
		if got := time.Unix(st.Mtim.Unix()); !got.Equal(when) {
			t.Errorf("%s: mtime %s", name, got)
		}
	}
	b := make([]byte, 64)
	if n, err := unix.Getxattr(filepath.Join(dir, "d/suid"), "security.capability", b); err != nil || string(b[:n]) != capability {
		t.Errorf("capability %q, %v", b[:max(n, 0)], err)
	}
	if n, err := unix.Getxattr(filepath.Join(dir, "d/suid"), "user.note", b); err != nil || string(b[:n]) != "hello" {
		t.Errorf("user xattr %q, %v", b[:max(n, 0)], err)
	}
}

// TestSparse unpacks what GNU tar makes of a file with a hole (format PAX 1.0), written by hand.
func TestSparse(t *testing.T) {
	testns.Root(t)
	const size = 64 << 20
	m := fmt.Sprintf("2\n0\n4\n%d\n4\n", size-4)
	body := m + strings.Repeat("\x00", 512-len(m)) + "headtail"
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	err := tw.WriteHeader(&tar.Header{Name: "GNUSparseFile.0/f", Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(body)), Format: tar.FormatPAX, PAXRecords: map[string]string{
		"VENDOR.keep": "x",
	}})
	if err != nil {
		t.Fatal(err)
	}
	_, _ = tw.Write([]byte(body))
	_ = tw.Close()
	// Package tar refuses to write GNU.sparse records; they go in over one of the same length.
	rec := func(k, v string) string {
		s := fmt.Sprintf(" %s=%s\n", k, v)
		for n := len(s); ; n++ {
			if r := fmt.Sprint(n) + s; len(r) == n {
				return r
			}
		}
	}
	recs := rec("GNU.sparse.major", "1") + rec("GNU.sparse.minor", "0") + rec("GNU.sparse.name", "f") + rec("GNU.sparse.realsize", fmt.Sprint(size))
	b := buf.Bytes()
	copy(b[124:136], fmt.Sprintf("%011o\x00", len(recs)))
	copy(b[512:1024], recs+strings.Repeat("\x00", 512-len(recs)))
	copy(b[148:156], "        ")
	sum := 0
	for _, c := range b[:512] {
		sum += int(c)
	}
	copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))

	dir, res, err := apply(t, b, options())
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(dir, "f"))
	if err != nil || len(got) != size || string(got[:4]) != "head" || string(got[size-4:]) != "tail" {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	if res.Bytes > 1<<20 {
		t.Errorf("%d bytes allocated: the hole was written", res.Bytes)
	}
}

func TestDeepTrees(t *testing.T) {
	testns.Root(t)
	base := t.TempDir()
	fd, err := unix.Open(base, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	at, _ := unix.Dup(fd)
	for i := range 3000 { // deeper than PATH_MAX and than descriptors allow
		if err := unix.Mkdirat(at, "deep", 0o755); err != nil {
			t.Fatal(i, err)
		}
		next, err := unix.Openat(at, "deep", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			t.Fatal(i, err)
		}
		_ = unix.Close(at)
		at = next
	}
	_ = unix.Close(at)
	if _, n, err := unpack.UsageAt(fd); err != nil || n < 100 {
		t.Errorf("usage: %d inodes, %v", n, err)
	}
	if err := unpack.RemoveAllAt(fd, "deep"); err != nil {
		t.Fatal(err)
	}
	if names, _ := unpack.ReadNames(fd); len(names) != 0 {
		t.Errorf("left: %v", names)
	}
}
