package records

import (
	"os"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// TestFilesAreUsedAgain: the file of a deleted record is a new one's, with nothing of the old in it, and no record meanwhile.
func TestFilesAreUsedAgain(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, 1)
	put := func(id, name string, changes int) os.FileInfo {
		t.Helper()
		for range changes {
			if err := s.Put(id, pod{Name: name}); err != nil {
				t.Fatal(err)
			}
		}
		st, err := os.Stat(s.path(id))
		if v, gerr := s.Get(id); err != nil || gerr != nil || v.Name != name {
			t.Fatalf("%v, %v, %+v", err, gerr, v)
		}
		return st
	}
	first := put("aa", strings.Repeat("a long name ", 500), 4)
	if err := s.Delete("aa"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get("aa"); !errdefs.IsNotFound(err) {
		t.Errorf("a deleted record: %v", err)
	}
	if list, err := s.Load(); err != nil || len(list) != 0 {
		t.Errorf("%v, %v", list, err)
	}
	if !os.SameFile(first, put("bb", "short", 1)) {
		t.Error("the file was not used again")
	}
	put("bb", "shorter", 2)
	if err := s.Delete("bb"); err != nil {
		t.Fatal(err)
	}
	open(t, dir, 1) // the next server
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
