package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
)

// TestLockOutlivesItsServer: the lock of a server that was killed while it started a program goes with that child; that of one
// that lives refuses at once.
func TestLockOutlivesItsServer(t *testing.T) {
	if _, err := exec.LookPath("flock"); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	// flock(1) takes the lock and ends; the shell and its child have the descriptor.
	c := exec.Command("sh", "-c", `exec 9<>"$0"; flock -n 9 || exit 1; sleep 0.5 >/dev/null 2>&1 & exit 0`, filepath.Join(dir, "cri-server.lock"))
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	f, err := lockDir(dir, 0o700)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if second, err := lockDir(dir, 0o700); !errdefs.IsAlreadyExists(err) {
		second.Close()
		t.Error(err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "cri-server.lock")); err != nil || len(b) == 0 {
		t.Errorf("%q, %v", b, err)
	}
}
