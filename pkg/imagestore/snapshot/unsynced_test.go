package snapshot_test

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore/snapshot"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore/unpack"
	"github.com/seed-9a14075a/cri-server/pkg/rootfs"
)

// TestUnsynced: the end of a container doesn't write out the node's disk. What nobody writes to has no need of that.
func TestUnsynced(t *testing.T) {
	testns.Root(t)
	d := driver(t, "overlay")
	layers := stack(t, tempDir(t, d), unpack.MarksTrusted, []entry{"a=1"}, []entry{"b=1"})
	if o := d.Rootfs(tempDir(t, d), layers).Options; !slices.Contains(o, "volatile") {
		t.Errorf("options of a snapshot: %v", o)
	}
	if v, ok := d.View(layers); !ok || slices.Contains(v.Options, "volatile") {
		t.Errorf("options of a view: %v", v.Options)
	}
}

// TestUnsyncedAfterAWriteError: then overlayfs refuses the option, until somebody syncs; the next start doesn't come soon.
func TestUnsyncedAfterAWriteError(t *testing.T) {
	testns.Root(t)
	root := testns.FailingDisk(t)
	d, _, err := snapshot.Open("overlay", root)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(root, "c1")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := d.Prepare(t.Context(), dir, nil); err != nil {
		t.Fatal(err)
	}
	r := d.Rootfs(dir, nil)
	if !slices.Contains(r.Options, "volatile") {
		t.Errorf("options of a snapshot: %v", r.Options)
	}
	f, err := r.Open(rootfs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
}
