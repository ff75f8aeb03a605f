package logs

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// A log path never leaves the pod's log directory, not even through links that lie in it.
func FuzzPath(f *testing.F) {
	for _, p := range []string{"ctr/0.log", "../x", "/etc/x", "out/x", "a//b/./c", "", ".", "up/../x", "a\x00b", "deep/out/x"} {
		f.Add(p)
	}
	f.Fuzz(func(t *testing.T, path string) {
		outer := t.TempDir()
		dir := filepath.Join(outer, "logs")
		for _, d := range []string{dir, filepath.Join(dir, "deep"), filepath.Join(outer, "elsewhere")} {
			if err := os.Mkdir(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		for _, link := range []string{"out", "deep/out"} {
			if err := os.Symlink(filepath.Join(outer, "elsewhere"), filepath.Join(dir, link)); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Symlink("..", filepath.Join(dir, "up")); err != nil {
			t.Fatal(err)
		}
		file, err := Open(dir, path)
		if err == nil {
			defer file.Close()
			if err := file.Reopen(); err != nil {
				t.Errorf("%q: reopen: %v", path, err)
			}
		}
		_ = filepath.WalkDir(outer, func(p string, d fs.DirEntry, _ error) error {
			if rel, _ := filepath.Rel(dir, p); d.Type().IsRegular() && !filepath.IsLocal(rel) {
				t.Errorf("%q made %s", path, p)
			}
			return nil
		})
		if left, _ := os.ReadDir(filepath.Join(outer, "elsewhere")); len(left) > 0 {
			t.Errorf("%q made %v elsewhere", path, left)
		}
	})
}
