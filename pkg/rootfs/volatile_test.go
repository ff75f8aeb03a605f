package rootfs

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/testns"
)

// TestVolatileAgain mounts layers a second time that were mounted "volatile" before, as when cri-monitor dies while it builds
// a container and the next one is told to build it.
func TestVolatileAgain(t *testing.T) {
	r := stack(t, 2, true)
	r.Options = []string{"volatile"}
	for _, name := range []string{"first", "second", "third"} {
		f, err := r.Open(Options{})
		if err != nil {
			t.Fatal(name, err)
		}
		write(t, filepath.Join(fdPath(int(f.Fd())), name), name)
		f.Close()
	}
	for _, name := range []string{"first", "second", "third"} {
		if b, err := os.ReadFile(filepath.Join(r.Upper, name)); err != nil || string(b) != name {
			t.Errorf("%s holds %q, %v", name, b, err)
		}
	}
	// It is a mark of "volatile" alone that is passed over.
	if err := os.MkdirAll(filepath.Join(r.Work, "work/incompat/other"), 0o700); err != nil {
		t.Fatal(err)
	}
	if f, err := r.Open(Options{}); err == nil {
		f.Close()
		t.Error("mounted what overlayfs refuses for another reason")
	}
	r.Options = nil
	if r.forgetVolatile() {
		t.Error("forgotten without the option")
	}
	r = Rootfs{Lower: r.Lower, Options: []string{"volatile", "xino=off"}}
	if o := r.options(Options{}); len(o) != 1 {
		t.Errorf("options without an upper layer: %v", o)
	}
}

// TestVolatileIsTaken: on all ways to mount, the kernel leaves its mark.
func TestVolatileIsTaken(t *testing.T) {
	for how, open := range openers {
		t.Run(how, func(t *testing.T) {
			r := stack(t, 2, true)
			r.Options = []string{"volatile"}
			fd, err := open(r, Options{})
			if how != "mount(2)" && (errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL)) {
				t.Skip("this kernel takes no layers by descriptor, or one by one: ", err)
			}
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			if _, err := os.Stat(filepath.Join(r.Work, "work/incompat/volatile")); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestVolatileAfterAWriteError: an error in writing to the disk, of whatever was to be written, keeps no container from being
// made, although overlayfs refuses to mount "volatile" until somebody has been told of it.
func TestVolatileAfterAWriteError(t *testing.T) {
	r := stack(t, 2, false)
	dir := testns.FailingDisk(t)
	r.Upper, r.Work, r.Options = filepath.Join(dir, "upper"), filepath.Join(dir, "work"), []string{"volatile"}
	for _, d := range []string{r.Upper, r.Work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for how, open := range openers {
		if fd, err := open(r, Options{}); err == nil {
			unix.Close(fd)
			t.Fatalf("%s: mounted at once: the test shows nothing", how)
		}
	}
	for _, o := range []Options{{}, {ReadOnly: true}} {
		f, err := r.Open(o)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(filepath.Join(fdPath(int(f.Fd())), "f1")); err != nil || string(b) != "1" {
			t.Errorf("f1: %q, %v", b, err)
		}
		f.Close()
	}
}
