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

func TestMain(m *testing.M) { testns.Main(m) }

// stream writes a tar of the headers; a regular file's Linkname is its content.
func stream(t testing.TB, hdrs ...tar.Header) []byte {
	t.Helper()
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	for _, h := range hdrs {
		var content string
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Typeflag == tar.TypeReg {
			content, h.Linkname = h.Linkname, ""
			h.Size = int64(len(content))
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		if h.Format == 0 {
			h.Format = tar.FormatPAX
		}
		if err := tw.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := tw.Write([]byte(content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func apply(t testing.TB, b []byte, opt unpack.Options) (string, unpack.Result, error) {
	t.Helper()
	base := t.TempDir()
	dir := filepath.Join(base, "jail", "fs")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	var manifest bytes.Buffer
	opt.Manifest = &manifest
	res, err := unpack.Apply(t.Context(), bytes.NewReader(b), fd, opt)
	if err == nil { // whatever was unpacked, its manifest describes it
		if err := unpack.Check(t.Context(), fd, &manifest, res.Marks, true, func(p unpack.Path, what string) {
			t.Errorf("check: %q: %s", p, what)
		}); err != nil {
			t.Error(err)
		}
	}
	if names, _ := os.ReadDir(filepath.Join(base, "jail")); len(names) != 1 {
		t.Errorf("something was made outside: %v", names)
	}
	if names, _ := os.ReadDir(base); len(names) != 1 {
		t.Errorf("something was made outside: %v", names)
	}
	return dir, res, err
}

func options() unpack.Options {
	return unpack.Options{Limits: unpack.DefaultLimits(), Marks: unpack.MarksTrusted}
}

func dirh(name string) tar.Header { return tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755} }
func reg(name, content string) tar.Header {
	return tar.Header{Name: name, Linkname: content}
}
func sym(name, to string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: to}
}
func hard(name, to string) tar.Header {
	return tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: to}
}

// TestRefused holds archives that must be refused, and leave nothing outside.
func TestRefused(t *testing.T) {
	testns.Root(t)
	long := strings.Repeat("n", 256)
	small := options()
	small.Limits.Entries, small.Limits.Bytes, small.Limits.XattrBytes = 5, 8192, 16
	var many []tar.Header
	for i := range 8 {
		many = append(many, reg(fmt.Sprint(i), ""))
	}
	for name, c := range map[string]struct {
		hdrs []tar.Header
		opt  unpack.Options
		kind error
	}{
		"dot dot":                 {hdrs: []tar.Header{reg("../escape", "x")}},
		"dot dot inside":          {hdrs: []tar.Header{reg("a/../../escape", "x")}},
		"absolute dot dot":        {hdrs: []tar.Header{reg("/../escape", "x")}},
		"long name":               {hdrs: []tar.Header{reg(long, "x")}},
		"deep path":               {hdrs: []tar.Header{reg(strings.Repeat("d/", 300)+"f", "x")}},
		"long path":               {hdrs: []tar.Header{reg(strings.Repeat(strings.Repeat("d", 200)+"/", 30)+"f", "x")}},
		"whiteout of dot dot":     {hdrs: []tar.Header{reg("a/.wh...", "")}},
		"whiteout of itself":      {hdrs: []tar.Header{reg(".wh..", "")}},
		"whiteout of nothing":     {hdrs: []tar.Header{reg("a/.wh.", "")}},
		"hard link outside":       {hdrs: []tar.Header{hard("l", "../../../etc/passwd")}},
		"hard link to directory":  {hdrs: []tar.Header{dirh("d/"), hard("l", "d")}},
		"hard link to root":       {hdrs: []tar.Header{hard("l", "/")}},
		"hard link to whiteout":   {hdrs: []tar.Header{reg(".wh.w", ""), hard("l", "w")}},
		"overlay xattr":           {hdrs: []tar.Header{{Name: "x", PAXRecords: map[string]string{"SCHILY.xattr.trusted.overlay.redirect": "/etc"}}}},
		"user overlay xattr":      {hdrs: []tar.Header{{Name: "x", PAXRecords: map[string]string{"SCHILY.xattr.user.overlay.opaque": "y"}}}},
		"file as directory":       {hdrs: []tar.Header{reg("a", "x"), reg("a/b", "x")}},
		"symlink loop":            {hdrs: []tar.Header{sym("a", "b"), sym("b", "a"), reg("a/f", "x")}},
		"root as a file":          {hdrs: []tar.Header{reg("./", "x")}},
		"root as a symlink":       {hdrs: []tar.Header{sym(".", "/etc")}},
		"device number too large": {hdrs: []tar.Header{{Name: "d", Typeflag: tar.TypeChar, Devmajor: 1 << 12, Format: tar.FormatGNU}}},
		"uid -1":                  {hdrs: []tar.Header{{Name: "u", Uid: 1<<32 - 1}}},
		"gid of 33 bits":          {hdrs: []tar.Header{{Name: "u", Gid: 1 << 32}}},
		"too many entries":        {hdrs: many, opt: small, kind: errdefs.ErrResourceExhausted},
		"too many implied":        {hdrs: []tar.Header{reg("a/b/c/d/e/f", "")}, opt: small, kind: errdefs.ErrResourceExhausted},
		"too large":               {hdrs: []tar.Header{reg("f", strings.Repeat("x", 9000))}, opt: small, kind: errdefs.ErrResourceExhausted},
		"too many xattr bytes":    {hdrs: []tar.Header{{Name: "x", PAXRecords: map[string]string{"SCHILY.xattr.user.a": strings.Repeat("x", 99)}}}, opt: small, kind: errdefs.ErrResourceExhausted},
		"long symlink":            {hdrs: []tar.Header{sym("l", strings.Repeat("x/", 3000))}},
	} {
		t.Run(name, func(t *testing.T) {
			if c.opt.Marks == "" {
				c.opt = options()
			}
			if c.kind == nil {
				c.kind = errdefs.ErrInvalidArgument
			}
			for i := range c.hdrs { // package tar would clean names that end in a slash
				if c.hdrs[i].Name == "./" {
					c.hdrs[i].Name = "."
				}
			}
			_, _, err := apply(t, stream(t, c.hdrs...), c.opt)
			if !errors.Is(err, c.kind) {
				t.Errorf("got %v, want %v", err, c.kind)
			}
		})
	}
}

// TestContained holds archives that are strange but have one sensible meaning inside the layer.
func TestContained(t *testing.T) {
	testns.Root(t)
	for name, c := range map[string]struct {
		hdrs   []tar.Header
		files  map[string]string // path: content
		absent []string
		marks  unpack.Marks
	}{
		"absolute name":         {hdrs: []tar.Header{reg("/etc/f", "x")}, files: map[string]string{"etc/f": "x"}, marks: unpack.Marks{Implied: []unpack.Path{".", "etc"}}},
		"dot components":        {hdrs: []tar.Header{dirh("./"), reg("././a//./b", "x")}, files: map[string]string{"a/b": "x"}, marks: unpack.Marks{Implied: []unpack.Path{"a"}}},
		"last entry wins":       {hdrs: []tar.Header{reg("f", "1"), reg("f", "2")}, files: map[string]string{"f": "2"}},
		"file replaces dir":     {hdrs: []tar.Header{reg("d/x", "1"), reg("d", "2")}, files: map[string]string{"d": "2"}},
		"dir replaces file":     {hdrs: []tar.Header{reg("d", "1"), dirh("d/"), reg("d/x", "2")}, files: map[string]string{"d/x": "2"}},
		"file replaces symlink": {hdrs: []tar.Header{sym("f", "/etc/passwd"), reg("f", "2")}, files: map[string]string{"f": "2"}},
		"dir replaces symlink":  {hdrs: []tar.Header{sym("d", "/etc"), dirh("d/"), reg("d/x", "2")}, files: map[string]string{"d/x": "2"}},
		"through a symlink":     {hdrs: []tar.Header{dirh("usr/lib/"), sym("lib", "usr/lib"), reg("lib/x", "1")}, files: map[string]string{"usr/lib/x": "1"}},
		"absolute symlink":      {hdrs: []tar.Header{sym("d", "/../../../target"), reg("d/x", "1")}, files: map[string]string{"target/x": "1"}},
		"symlink with dot dot":  {hdrs: []tar.Header{dirh("a/b/"), sym("a/b/up", "../../../.."), reg("a/b/up/x", "1")}, files: map[string]string{"x": "1"}},
		"hard link":             {hdrs: []tar.Header{reg("a", "1"), hard("b/c", "/a")}, files: map[string]string{"b/c": "1"}},
		"hard link to itself":   {hdrs: []tar.Header{reg("a", "1"), hard("a", "./a")}, files: map[string]string{"a": "1"}},
		"hard link below":       {hdrs: []tar.Header{hard("b", "usr/bin/a")}, absent: []string{"b"}, marks: unpack.Marks{Links: []unpack.Link{{Path: "b", Target: "usr/bin/a"}}}},
		"whiteout":              {hdrs: []tar.Header{dirh("d/"), reg("d/.wh.x", "")}, marks: unpack.Marks{Whiteouts: []unpack.Path{"d/x"}}},
		"whiteout and file":     {hdrs: []tar.Header{reg(".wh.x", ""), reg("x", "1")}, files: map[string]string{"x": "1"}},
		"file and whiteout":     {hdrs: []tar.Header{reg("x", "1"), reg(".wh.x", "")}, files: map[string]string{"x": "1"}},
		"whiteout and dir":      {hdrs: []tar.Header{reg(".wh.d", ""), dirh("d/"), reg("d/x", "1")}, files: map[string]string{"d/x": "1"}, marks: unpack.Marks{Opaques: []unpack.Path{"d"}}},
		"dir and whiteout":      {hdrs: []tar.Header{dirh("d/"), reg("d/x", "1"), reg(".wh.d", "")}, files: map[string]string{"d/x": "1"}, marks: unpack.Marks{Opaques: []unpack.Path{"d"}}},
		"whiteout and implied":  {hdrs: []tar.Header{reg(".wh.d", ""), reg("d/x", "1")}, files: map[string]string{"d/x": "1"}, marks: unpack.Marks{Opaques: []unpack.Path{"d"}, Implied: []unpack.Path{".", "d"}}},
		"opaque":                {hdrs: []tar.Header{dirh("d/"), reg("d/x", "1"), reg("d/.wh..wh..opq", "")}, files: map[string]string{"d/x": "1"}, absent: []string{"d/.wh..wh..opq"}, marks: unpack.Marks{Opaques: []unpack.Path{"d"}}},
		"aufs files":            {hdrs: []tar.Header{dirh(".wh..wh.plnk/"), reg(".wh..wh.aufs", "")}, absent: []string{".wh..wh.aufs", ".wh..wh.plnk"}},
		"device 0:0":            {hdrs: []tar.Header{{Name: "x", Typeflag: tar.TypeChar, Format: tar.FormatGNU}}, marks: unpack.Marks{Whiteouts: []unpack.Path{"x"}}},
		"replaced whiteout dir": {hdrs: []tar.Header{reg("d/.wh.x", ""), reg("d", "1")}, files: map[string]string{"d": "1"}},
		"names without UTF-8":   {hdrs: []tar.Header{{Name: "a\xff", Linkname: "1", Format: tar.FormatGNU}}, files: map[string]string{"a\xff": "1"}},
		"selinux label":         {hdrs: []tar.Header{{Name: "x", Linkname: "1", PAXRecords: map[string]string{"SCHILY.xattr.security.selinux": "x"}}}, files: map[string]string{"x": "1"}},
	} {
		for _, form := range []unpack.MarkForm{unpack.MarksTrusted, unpack.MarksFiles, unpack.MarksNone} {
			t.Run(name+"/"+string(form), func(t *testing.T) {
				opt := options()
				opt.Marks = form
				dir, res, err := apply(t, stream(t, c.hdrs...), opt)
				if err != nil {
					t.Fatal(err)
				}
				for p, want := range c.files {
					if b, err := os.ReadFile(filepath.Join(dir, p)); err != nil || string(b) != want {
						t.Errorf("%s: %q, %v", p, b, err)
					}
				}
				for _, p := range c.absent {
					if form == unpack.MarksFiles && unpack.IsMark(filepath.Base(p)) {
						continue
					}
					if _, err := os.Lstat(filepath.Join(dir, p)); !os.IsNotExist(err) {
						t.Errorf("%s: %v", p, err)
					}
				}
				m := res.Marks
				if !slices.Equal(m.Whiteouts, c.marks.Whiteouts) || !slices.Equal(m.Opaques, c.marks.Opaques) || !slices.Equal(m.Links, c.marks.Links) {
					t.Errorf("marks %+v, want %+v", m, c.marks)
				}
				if c.marks.Implied != nil && !slices.Equal(m.Implied, c.marks.Implied) {
					t.Errorf("implied %v, want %v", m.Implied, c.marks.Implied)
				}
				checkForm(t, dir, m)
				checkUsage(t, dir, res)
			})
		}
	}
}

// checkForm looks for overlayfs's marks on disk.
func checkForm(t *testing.T, dir string, m unpack.Marks) {
	t.Helper()
	for _, w := range m.Whiteouts {
		var st unix.Stat_t
		err := unix.Lstat(filepath.Join(dir, string(w)), &st)
		if m.Form == unpack.MarksNone || m.Form == unpack.MarksFiles {
			if err == nil {
				t.Errorf("%s is there", w)
			}
			mark := filepath.Join(dir, filepath.Dir(string(w)), ".wh."+filepath.Base(string(w)))
			if _, err := os.Lstat(mark); (err == nil) != (m.Form == unpack.MarksFiles) {
				t.Errorf("%s: %v", mark, err)
			}
		} else if err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != 0 {
			t.Errorf("%s is no whiteout: %v", w, err)
		}
	}
	for _, o := range m.Opaques {
		if _, err := os.Lstat(filepath.Join(dir, string(o), ".wh..wh..opq")); (err == nil) != (m.Form == unpack.MarksFiles) {
			t.Errorf("%s: opaque mark: %v", o, err)
		}
		b := make([]byte, 8)
		n, err := unix.Lgetxattr(filepath.Join(dir, string(o)), "trusted.overlay.opaque", b)
		if is := err == nil && string(b[:n]) == "y"; is != (m.Form == unpack.MarksTrusted) {
			t.Errorf("%s: opaque %v", o, is)
		}
	}
}

func checkUsage(t *testing.T, dir string, res unpack.Result) {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if b, n, err := unpack.UsageAt(fd); err != nil || b != res.Bytes || n != res.Inodes {
		t.Errorf("result has %d bytes, %d inodes; the disk %d, %d (%v)", res.Bytes, res.Inodes, b, n, err)
	}
}

func FuzzApply(f *testing.F) {
	if os.Geteuid() != 0 {
		f.Skip("needs root")
	}
	f.Add(stream(f, dirh("a/"), reg("a/b", "x"), sym("a/c", "../.."), reg("a/c/d", "y"), hard("e", "a/b"), reg("a/.wh.f", ""), reg("a/.wh..wh..opq", "")))
	f.Add(stream(f, sym("a", "/"), sym("b", "a/a/a"), reg("b/../x", "y"), hard("b/h", "a/b")))
	f.Fuzz(func(t *testing.T, b []byte) {
		opt := options()
		opt.Limits.Entries, opt.Limits.Bytes = 200, 1<<20
		_, res, err := apply(t, b, opt)
		if err == nil && res.Inodes < 1 {
			t.Errorf("inodes %d", res.Inodes)
		}
	})
}
