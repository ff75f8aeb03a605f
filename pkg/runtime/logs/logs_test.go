package logs

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/testns"
)

func TestMain(m *testing.M) { testns.Main(m) }

func open1(t testing.TB) (*File, string) {
	t.Helper()
	dir := t.TempDir()
	f, err := Open(dir, "c/0.log")
	if err != nil {
		t.Fatal(err)
	}
	return f, filepath.Join(dir, "c/0.log")
}

// records returns tag and content of each record in file order.
func records(t testing.TB, b []byte) (list []string) {
	t.Helper()
	var last time.Time
	for line := range bytes.Lines(b) {
		f := strings.SplitN(string(line), " ", 4)
		if len(f) != 4 || !strings.HasSuffix(f[3], "\n") {
			t.Fatalf("bad record %.80q", line)
		}
		at, err := time.Parse(time.RFC3339Nano, f[0])
		if err != nil || len(f[0]) < nanoEnd+1 || !at.After(last) {
			t.Fatalf("time %q after %v: %v", f[0], last, err)
		}
		last = at
		list = append(list, f[1]+" "+f[2]+" "+strings.TrimSuffix(f[3], "\n"))
	}
	return list
}

// join gives back what was written to a stream.
func join(list []string, stream string) string {
	var b strings.Builder
	for _, r := range list {
		f := strings.SplitN(r, " ", 3)
		if f[0] == stream {
			b.WriteString(f[2])
			if f[1] == "F" {
				b.WriteByte('\n')
			}
		}
	}
	return b.String()
}

func TestFormat(t *testing.T) {
	x := strings.Repeat("x", MaxLine)
	tests := []struct {
		name string
		in   []string // "1:..." for stdout, "2:..." for stderr, "1$" for its end
		want []string
	}{
		{"lines", []string{"1:a\nb\n"}, []string{"stdout F a", "stdout F b"}},
		{"empty line", []string{"1:\n\n"}, []string{"stdout F ", "stdout F "}},
		{"line in pieces", []string{"1:a", "1:b", "1:c\n"}, []string{"stdout F abc"}},
		{"both streams", []string{"1:a", "2:b\n", "1:\n"}, []string{"stderr F b", "stdout F a"}},
		{"no newline at the end", []string{"1:a\nb", "1$"}, []string{"stdout F a", "stdout P b"}},
		{"end without output", []string{"1$", "2$"}, nil},
		{"carriage return kept", []string{"1:a\r\n\r\n"}, []string{"stdout F a\r", "stdout F \r"}},
		{"binary", []string{"1:\x00\xff\xfe\x1b[0m\n"}, []string{"stdout F \x00\xff\xfe\x1b[0m"}},
		{"exactly the limit", []string{"1:" + x + "\n"}, []string{"stdout F " + x}},
		{"the limit, newline later", []string{"1:" + x, "1:\n"}, []string{"stdout F " + x}},
		{"one over", []string{"1:" + x + "y\n"}, []string{"stdout P " + x, "stdout F y"}},
		{"one over, later", []string{"1:" + x, "1:y\n"}, []string{"stdout P " + x, "stdout F y"}},
		{"twice the limit", []string{"1:" + x + x + "\n"}, []string{"stdout P " + x, "stdout F " + x}},
		{"carriage return at the cut", []string{"1:" + x[1:] + "\r\n"}, []string{"stdout F " + x[1:] + "\r"}},
		{"long without newline", []string{"1:" + x + x + "z", "1$"}, []string{"stdout P " + x, "stdout P " + x, "stdout P z"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, path := open1(t)
			b := NewBuffer()
			for _, in := range tt.in {
				s, end := Stream(in[0]-'1'), in[1] == '$'
				var err error
				if end {
					err = f.End(b, s)
				} else {
					err = f.Append(b, s, []byte(in[2:]))
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			out, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			got := records(t, out)
			if strings.Join(got, "\n") != strings.Join(tt.want, "\n") {
				t.Errorf("got %.200q\nwant %.200q", got, tt.want)
			}
		})
	}
}

// TestClock counts over a second's end, and goes on in order when the time is set back.
func TestClock(t *testing.T) {
	var c clock
	now := time.Date(2026, 12, 31, 23, 59, 59, 999_999_998, time.FixedZone("", 5*3600+1800))
	c.start(now)
	var got []string
	for range 3 {
		got = append(got, string(c.text[:c.n]))
		c.next(now.Location())
	}
	c.start(now.Add(-time.Hour))
	got = append(got, string(c.text[:c.n]))
	want := []string{
		"2026-12-31T23:59:59.999999998+05:30", "2026-12-31T23:59:59.999999999+05:30",
		"2027-01-01T00:00:00.000000000+05:30", "2027-01-01T00:00:00.000000002+05:30",
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("got %v", got)
	}
}

// TestFull lets writes fail, fall short and be interrupted at random, with reopening in between: every byte arrives
// once, in whole records.
func TestFull(t *testing.T) {
	for seed := range uint64(30) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		f, path := open1(t)
		full := false
		f.write = func(fd int, p []byte) (int, error) {
			switch n := rnd.IntN(4); {
			case n == 0:
				return -1, unix.EINTR
			case full && n == 1, full && len(p) < 2:
				return -1, unix.ENOSPC
			case full || n == 2:
				return unix.Write(fd, p[:1+rnd.IntN(len(p))])
			}
			return unix.Write(fd, p)
		}
		b := NewBuffer()
		var want strings.Builder
		var files []string
		for i := range 400 {
			line := fmt.Sprintf("%d %s\n", i, strings.Repeat("v", rnd.IntN(300)))
			want.WriteString(line)
			_ = f.Append(b, Stdout, []byte(line))
			switch rnd.IntN(12) {
			case 0:
				full = !full
			case 1:
				_ = f.Retry()
			case 2:
				old := fmt.Sprintf("%s.%d", path, i)
				if err := os.Rename(path, old); err != nil {
					t.Fatal(err)
				}
				if err := f.Reopen(); err != nil {
					t.Fatal(err)
				}
				files = append(files, old)
			}
		}
		full = false
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		var all []byte
		for _, name := range append(files, path) {
			out, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			records(t, out) // whole records in each file
			all = append(all, out...)
		}
		if got := join(records(t, all), "stdout"); got != want.String() {
			t.Fatalf("seed %d: %d bytes instead of %d", seed, len(got), want.Len())
		}
	}
}

// TestNoSpace uses a file system that is really full.
func TestNoSpace(t *testing.T) {
	testns.Root(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
	if err := os.WriteFile(filepath.Join(dir, "ballast"), make([]byte, 128<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Open(dir, "log")
	if err != nil {
		t.Fatal(err)
	}
	b := NewBuffer()
	line := strings.Repeat("w", 99) + "\n"
	var want strings.Builder
	for range 2000 {
		want.WriteString(line)
		_ = f.Append(b, Stderr, []byte(line))
	}
	if f.Waiting() == 0 || f.Err() == nil {
		t.Fatal("the file system was not full")
	}
	if err := f.Retry(); err == nil {
		t.Fatal("retry worked on a full file system")
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "size=4m"); err != nil {
		t.Fatal(err)
	}
	if err := f.Retry(); err != nil || f.Waiting() != 0 {
		t.Fatalf("retry: %v, %d wait", err, f.Waiting())
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	out, err := os.ReadFile(filepath.Join(dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	if join(records(t, out), "stderr") != want.String() {
		t.Error("bytes are missing")
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	outside := t.TempDir()
	for _, err := range []error{
		os.Symlink(outside, filepath.Join(dir, "dirlink")),
		os.Symlink(filepath.Join(outside, "f"), filepath.Join(dir, "link")),
		os.Symlink("real", filepath.Join(dir, "inner")),
		os.WriteFile(filepath.Join(dir, "real"), nil, 0o600),
		os.Mkdir(filepath.Join(dir, "dir"), 0o755),
		unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{"", ".", "..", "../f", "a/../../f", "/etc/passwd", "f/", "dirlink/f", "link", "inner", "dir", "fifo", "real/f", strings.Repeat("n", 300)} {
		if f, err := Open(dir, path); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v %v", path, f, err)
		}
	}
	if _, err := Open(filepath.Join(dir, "missing"), "f"); !errdefs.IsNotFound(err) {
		t.Errorf("missing directory: %v", err)
	}
	if left, _ := os.ReadDir(outside); len(left) > 0 {
		t.Errorf("made outside: %v", left)
	}
	f, err := Open(dir, "a/b/../c/0.log")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if st, err := os.Stat(filepath.Join(dir, "a/c/0.log")); err != nil || st.Mode().Perm() != 0o640 {
		t.Errorf("%v %v", st, err)
	}
}

// TestReopenFails keeps the old file and makes no new one.
func TestReopenFails(t *testing.T) {
	f, path := open1(t)
	defer f.Close()
	b := NewBuffer()
	_ = f.Append(b, Stdout, []byte("one\n"))
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("elsewhere", path); err != nil {
		t.Fatal(err)
	}
	if err := f.Reopen(); !errdefs.IsInvalidArgument(err) {
		t.Fatalf("reopen: %v", err)
	}
	_ = f.Append(b, Stdout, []byte("two\n"))
	out, err := os.ReadFile(path + ".1")
	if err != nil || join(records(t, out), "stdout") != "one\ntwo\n" {
		t.Errorf("old file: %q %v", out, err)
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(path), "elsewhere")); !os.IsNotExist(err) {
		t.Errorf("a new file was made: %v", err)
	}
}

func FuzzRoundTrip(f *testing.F) {
	f.Add([]byte("a\nb"), uint8(3))
	f.Add(bytes.Repeat([]byte("x"), 3*MaxLine), uint8(200))
	f.Fuzz(func(t *testing.T, in []byte, step uint8) {
		var out bytes.Buffer
		file := &File{fd: -1, now: time.Now, write: func(_ int, p []byte) (int, error) { return out.Write(p) }}
		b := NewBuffer()
		for rest := in; len(rest) > 0; {
			n := min(len(rest), int(step)*97+1)
			_ = file.Append(b, Stdout, rest[:n])
			rest = rest[n:]
		}
		_ = file.End(b, Stdout)
		if got := join(records(t, out.Bytes()), "stdout"); got != string(in) {
			t.Fatalf("got %.100q for %.100q", got, in)
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	f := &File{fd: -1, now: time.Now, write: func(_ int, p []byte) (int, error) { return len(p), nil }}
	buf := NewBuffer()
	in := bytes.Repeat([]byte(strings.Repeat("l", 99)+"\n"), 655)
	b.SetBytes(int64(len(in)))
	for b.Loop() {
		_ = f.Append(buf, Stdout, in)
	}
}
