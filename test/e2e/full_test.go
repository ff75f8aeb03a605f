package e2e

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/test/images"
	"github.com/seed-9a14075a/cri-server/test/testnode"
)

// fullFS makes a file system full, in one way or the other, until free is called.
type fullFS struct {
	t       *testing.T
	dir     string
	filler  string
	options string // of the mount, when it is not full
}

func (f *fullFS) remount(options string) {
	f.t.Helper()
	if err := unix.Mount("", f.dir, "", unix.MS_REMOUNT|unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		f.t.Fatalf("remount %s with %s: %v", f.dir, options, err)
	}
}

// bytes leaves no room for a byte.
func (f *fullFS) bytes() {
	f.t.Helper()
	w, err := os.Create(f.filler)
	if err != nil {
		f.t.Fatal(err)
	}
	defer w.Close()
	f.remount(fmt.Sprintf("size=%d", f.used()+64<<10))
	if _, err := io.Copy(w, zeros{}); !errors.Is(err, unix.ENOSPC) {
		f.t.Fatalf("fill %s: %v", f.dir, err)
	}
}

func (f *fullFS) used() uint64 {
	var st unix.Statfs_t
	if err := unix.Statfs(f.dir, &st); err != nil {
		f.t.Fatal(err)
	}
	return (st.Blocks - st.Bfree) * uint64(st.Bsize)
}

// inodes leaves no room for a file.
func (f *fullFS) inodes() {
	f.t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(f.dir, &st); err != nil {
		f.t.Fatal(err)
	}
	f.remount(fmt.Sprintf("nr_inodes=%d", st.Files-st.Ffree))
}

func (f *fullFS) free() {
	f.t.Helper()
	_ = os.Remove(f.filler)
	f.remount(f.options)
}

// TestFullState: everything that cri-server writes is on one file system, which is full when a call comes. Each call says so
// or does without, loses nothing, and succeeds when there is room again.
func TestFullState(t *testing.T) {
	f := start(t, testnode.Options{Dir: "/run/full"}) // beside the state directory and what pins network namespaces
	full := &fullFS{t, "/run", "/run/filler", "size=2g,nr_inodes=100000"}
	witness := f.newLife("witness")
	witness.config.PortMappings = nil
	f.pull(images.Zstd)
	witness.image = registry + images.Zstd
	witness.run0(t)
	stored := f.stored()
	for way, fill := range map[string]func(){"no byte": full.bytes, "no inode": full.inodes} {
		l := f.newLife(strings.ReplaceAll(way, " ", "-"))
		refused := 0
		for _, s := range l.steps() {
			if s.name == "import" {
				break // there is no archive
			}
			when := way + ", " + s.name
			fill()
			err := s.call()
			if err != nil {
				refused++
				if !strings.Contains(err.Error(), "no space left") {
					t.Errorf("%s: the error does not say it: %v", when, err)
				}
			}
			t.Logf("%s: %v", when, err)
			for _, wrong := range append(l.lost(), witness.lost()...) {
				t.Errorf("%s: %s", when, wrong)
			}
			if s.name == "start" && way == "no byte" {
				f.restart(when)
			}
			if s.name == "remove image" && err != nil {
				t.Errorf("%s: this is how room is made: %v", when, err)
			}
			full.free()
			if err != nil {
				if _, err := f.again(s); err != nil {
					t.Fatalf("%s, when there is room again: %v", when, err)
				}
			}
			for _, wrong := range append(l.lost(), witness.lost()...) {
				t.Errorf("%s, again: %s", when, wrong)
			}
		}
		if refused == 0 {
			t.Errorf("%s: nothing was refused", way)
		}
		if left := f.stored(); strings.Join(left, "\n") != strings.Join(stored, "\n") {
			t.Errorf("%s: in the image store are\n\t%s\nand were\n\t%s", way, strings.Join(left, "\n\t"), strings.Join(stored, "\n\t"))
		}
	}
	if out := f.exec(witness.ctr, "echo there"); out != "there\n" {
		t.Errorf("%q", out)
	}
	f.removePod(witness.pod)
	if left, err := os.ReadDir(filepath.Join(f.State, "sandboxes")); err != nil || len(left) > 0 {
		t.Errorf("%v %v", left, err)
	}
}
