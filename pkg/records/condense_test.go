package records

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
)

// state puts one of testdata/states, which are files as servers have written them, in the place of the record of aa.
func state(t *testing.T, dir, name string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "states", name))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "aa.json"), b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestStates reads what older, this, and newer servers have written.
func TestStates(t *testing.T) {
	for name, want := range map[string]struct {
		count int
		err   error
	}{
		"one-record.json":         {1, nil},
		"several-records.json":    {2, nil},
		"newer-version.json":      {3, errdefs.ErrFailedPrecondition},
		"newer-behind-older.json": {3, errdefs.ErrFailedPrecondition},
		"newer-form.json":         {3, errdefs.ErrFailedPrecondition},
	} {
		dir := t.TempDir()
		s := open(t, dir, 1)
		state(t, dir, name)
		if got, err := s.Get("aa"); !errors.Is(err, want.err) || got.Count != want.count {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

// olderServer reads as servers did before records were appended: a line and its sum, and nothing else.
func olderServer(t *testing.T, dir string) error {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "aa.json"))
	if err != nil {
		t.Fatal(err)
	}
	return verify(b)
}

func TestCondense(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, 1)
	for i := range 3 {
		if err := s.Put("aa", pod{Name: "web", Count: i}); err != nil {
			t.Fatal(err)
		}
	}
	if err := olderServer(t, dir); err == nil {
		t.Fatal("the file has one record only: this tests nothing")
	}
	locks := 0
	lock := func(context.Context, string) (func(), error) { locks++; return func() { locks-- }, nil }
	if err := s.Condense(t.Context(), lock); err != nil || locks != 0 {
		t.Fatalf("%v, %d locks", err, locks)
	}
	if err := olderServer(t, dir); err != nil {
		t.Error(err)
	}
	if got, err := s.Get("aa"); err != nil || got.Count != 2 {
		t.Errorf("%+v, %v", got, err)
	}
	for _, name := range []string{"newer-form.json", "one-record.json", "newer-behind-older.json"} {
		state(t, dir, name)
		before, _ := os.Stat(filepath.Join(dir, "aa.json"))
		err := s.Condense(t.Context(), lock)
		after, _ := os.Stat(filepath.Join(dir, "aa.json"))
		if err != nil || name != "newer-behind-older.json" && !os.SameFile(before, after) {
			t.Errorf("%s: %v, or it was written anew", name, err)
		}
	}
	if got, err := s.Get("aa"); !errors.Is(err, errdefs.ErrFailedPrecondition) || got.Count != 3 {
		t.Errorf("a newer server's: %+v, %v", got, err)
	}
	broken := errors.New("busy")
	if err := s.Condense(t.Context(), func(context.Context, string) (func(), error) { return nil, broken }); !errors.Is(err, broken) {
		t.Errorf("without a lock: %v", err)
	}
}

// TestLinkIsReplaced: a record is a file; a link that somebody put in its place is read, and replaced by the next record.
func TestLinkIsReplaced(t *testing.T) {
	dir, elsewhere := t.TempDir(), filepath.Join(t.TempDir(), "aa.json")
	s := open(t, dir, 1)
	if err := s.Put("aa", pod{Count: 1}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Rename(s.path("aa"), elsewhere), os.Symlink(elsewhere, s.path("aa"))); err != nil {
		t.Fatal(err)
	}
	if err := s.Put("aa", pod{Count: 2}); err != nil {
		t.Fatal(err)
	}
	st, err := os.Lstat(s.path("aa"))
	if got, gerr := s.Get("aa"); err != nil || gerr != nil || !st.Mode().IsRegular() || got.Count != 2 {
		t.Errorf("%v, %v, %v, %+v", st.Mode(), err, gerr, got)
	}
	if err := os.Remove(s.path("aa")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(s.path("aa"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.Put("aa", pod{Count: 3}); err == nil {
		t.Error("a directory was replaced")
	}
}
