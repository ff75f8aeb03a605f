package rootfs

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
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
