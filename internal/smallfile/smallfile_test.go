package smallfile

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func content(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func names(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return strings.Join(list, " ")
}

func inode(t *testing.T, path string) fs.FileInfo {
	t.Helper()
	st, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func TestWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	for _, text := range []string{"long enough", "short", ""} {
		if err := Write(path, []byte(text), 0o600); err != nil || content(t, path) != text {
			t.Errorf("%q: %v", text, err)
		}
	}
	if err := Create(path, nil, 0o600); !errors.Is(err, fs.ErrExist) {
		t.Errorf("one that is there: %v", err)
	}
	if err := Write(filepath.Join(path, "g"), nil, 0o600); err == nil {
		t.Error("below a file")
	}
	if err := Write(filepath.Dir(path)+"/no/f", nil, 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("in no directory: %v", err)
	}
}

func TestSpares(t *testing.T) {
	dir := t.TempDir()
	s := NewSpares(dir, ".spare-", 2)
	put := func(name, text string) fs.FileInfo {
		t.Helper()
		temp, err := s.Temp([]byte(text), 0o600)
		if err == nil {
			err = os.Rename(temp, filepath.Join(dir, name))
		}
		if err != nil || content(t, filepath.Join(dir, name)) != text {
			t.Fatalf("%s: %v", name, err)
		}
		return inode(t, filepath.Join(dir, name))
	}
	first := put("a", "rather long")
	for _, n := range []string{"b", "c"} {
		put(n, n)
	}
	for _, n := range []string{"c", "b", "a"} { // a is one too many
		if err := s.Remove(filepath.Join(dir, n)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Remove(filepath.Join(dir, "a")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("one that is gone: %v", err)
	}
	if n := strings.Count(names(t, dir), ".spare-"); n != 2 {
		t.Errorf("there are %s", names(t, dir))
	}
	if os.SameFile(first, put("d", "x")) {
		t.Error("one that was one too many came back")
	}
	d := inode(t, filepath.Join(dir, "d"))
	if err := s.Remove(filepath.Join(dir, "d")); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"longer than it was", "", "y"} {
		if again := put("e", text); !os.SameFile(d, again) {
			t.Errorf("%q is in a new file", text)
		}
		if err := s.Remove(filepath.Join(dir, "e")); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Clean(); err != nil || names(t, dir) != "" {
		t.Errorf("%v, %s", err, names(t, dir))
	}
}

// What was taken out of use may be no file of ours.
func TestStrangeSpares(t *testing.T) {
	for name, make := range map[string]func(dir, path string) error{
		"a link":            func(dir, path string) error { return os.Symlink(filepath.Join(dir, "kept"), path) },
		"another name":      func(dir, path string) error { return os.Link(filepath.Join(dir, "kept"), path) },
		"another mode":      func(_, path string) error { return os.WriteFile(path, nil, 0o644) },
		"one that has gone": func(_, path string) error { return os.WriteFile(path, nil, 0o600) },
	} {
		dir := t.TempDir()
		s := NewSpares(dir, ".spare-", 2)
		path := filepath.Join(dir, "f")
		err := errors.Join(os.WriteFile(filepath.Join(dir, "kept"), []byte("kept"), 0o600), make(dir, path), s.Remove(path))
		if name == "one that has gone" {
			err = errors.Join(err, os.Remove(s.free[0]))
		}
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		temp, err := s.Temp([]byte("new"), 0o600)
		if err != nil || content(t, temp) != "new" || content(t, filepath.Join(dir, "kept")) != "kept" {
			t.Errorf("%s: %v", name, err)
		}
		if st := inode(t, temp); st.Mode() != 0o600 {
			t.Errorf("%s: mode %v", name, st.Mode())
		}
	}
}

// Another process may use the same directory.
func TestNameIsTaken(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, ".spare-1"), []byte("of another process"), 0o600); err != nil {
		t.Fatal(err)
	}
	temp, err := NewSpares(dir, ".spare-", 2).Temp([]byte("new"), 0o600)
	if err != nil || content(t, temp) != "new" {
		t.Error(err)
	}
}

func TestSparesTogether(t *testing.T) {
	dir := t.TempDir()
	s := NewSpares(dir, ".spare-", 4)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for range 50 {
				path := filepath.Join(dir, string(rune('a'+i)))
				text := strings.Repeat(path, i+1)
				temp, err := s.Temp([]byte(text), 0o600)
				if err == nil {
					err = os.Rename(temp, path)
				}
				if b, rerr := os.ReadFile(path); err != nil || rerr != nil || string(b) != text {
					t.Errorf("%v, %v, %q", err, rerr, b)
					return
				}
				if err := s.Remove(path); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

// What is no file is no spare: it could be neither written nor cleaned away.
func TestRemoveDirectory(t *testing.T) {
	dir := t.TempDir()
	s := NewSpares(dir, ".spare-", 2)
	path := filepath.Join(dir, "d")
	if err := os.MkdirAll(filepath.Join(path, "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(path); err == nil {
		t.Error("a directory that is not empty is removed")
	}
	if temp, err := s.Temp([]byte("new"), 0o600); err != nil || content(t, temp) != "new" {
		t.Error(err)
	}
	if err := errors.Join(os.Remove(filepath.Join(path, "full")), s.Remove(path)); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if err := s.Clean(); err != nil || names(t, dir) != "" {
		t.Errorf("%v, %s", err, names(t, dir))
	}
}

func TestOverwrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	for _, text := range []string{"first", "a longer one", "short", ""} {
		if err := Overwrite(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != text {
			t.Errorf("%q %v, want %q", b, err, text)
		}
	}
	link := path + "-link"
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	if err := Overwrite(link, []byte("through it"), 0o600); !errors.Is(err, unix.ELOOP) {
		t.Errorf("a link: %v", err)
	}
}
