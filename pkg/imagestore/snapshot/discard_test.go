package snapshot_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore/snapshot"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore/unpack"
	"github.com/seed-9a14075a/cri-server/pkg/rootfs"
)

// TestDiscard: nothing is left of an overlay that nobody wrote to, and nothing goes but what is known to be empty.
func TestDiscard(t *testing.T) {
	testns.Root(t)
	outside := t.TempDir()
	for name, tc := range map[string]struct {
		write func(upper string) error
		left  string
	}{
		"untouched": {func(string) error { return nil }, ""},
		"a file":    {func(upper string) error { return os.WriteFile(filepath.Join(upper, "f"), nil, 0o600) }, "fs fs/f"},
		"a link": {func(upper string) error {
			if err := os.Remove(upper); err != nil {
				return err
			}
			return os.Symlink(outside, upper)
		}, "fs"},
	} {
		t.Run(name, func(t *testing.T) {
			d := driver(t, "overlay")
			layers := stack(t, tempDir(t, d), unpack.MarksTrusted, []entry{"a=1"})
			dir := tempDir(t, d)
			if err := d.Prepare(t.Context(), dir, layers); err != nil {
				t.Fatal(err)
			}
			r := d.Rootfs(dir, layers)
			f, err := r.Open(rootfs.Options{})
			if err != nil {
				t.Fatal(err)
			}
			f.Close()
			if left, err := os.ReadDir(filepath.Join(r.Work, "work", "incompat")); err != nil || len(left) != 1 {
				t.Errorf("marks of the mount: %v %v", left, err)
			}
			if err := tc.write(r.Upper); err != nil {
				t.Fatal(err)
			}
			d.Driver.(snapshot.Discarder).Discard(dir)
			var left []string
			_ = filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
				if p != dir {
					left = append(left, strings.TrimPrefix(p, dir+"/"))
				}
				return err
			})
			if got := strings.Join(left, " "); got != tc.left {
				t.Errorf("left: %q, want %q", got, tc.left)
			}
			var st unix.Stat_t
			if err := unix.Stat(outside, &st); err != nil {
				t.Error(err)
			}
		})
	}
}
