package testns

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// FailingDisk mounts a new ext4 on which something could not be written, and nobody has been told but by the file's own
// fsync(2). From then on it can be written to. The test calls Root before.
func FailingDisk(t testing.TB) string {
	t.Helper()
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		t.Skip("mkfs.ext4 is not installed (Debian package e2fsprogs)")
	}
	small, dir := t.TempDir(), t.TempDir()
	img := filepath.Join(small, "img")
	run := func(c ...string) {
		t.Helper()
		if out, err := exec.Command(c[0], c[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", c, err, out)
		}
	}
	run("mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", small)
	t.Cleanup(func() { _ = unix.Unmount(small, unix.MNT_DETACH) })
	run("truncate", "-s", "64M", img)
	run("mkfs.ext4", "-q", "-O", "^has_journal", "-E", "lazy_itable_init=0", img)
	run("mount", "-o", "loop,errors=continue", img, dir)
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	f, err := os.Create(filepath.Join(dir, "large"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.Write(make([]byte, 32<<20)); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err == nil {
		t.Fatal("more was written than there is room for")
	}
	run("mount", "-o", "remount,size=128m", small) // what follows can be written
	return dir
}
