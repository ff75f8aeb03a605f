package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestTorture is a short run with a fixed seed of the programs in bin, once with cri-monitor as a unit and once without.
func TestTorture(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	repo, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(repo, "bin", "cri-server")); err != nil {
		t.Skip("bin/cri-server is missing: make build")
	}
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", dir+"/", ".", "./writer")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // writer runs in containers
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, args := range []string{"-seed 1 -for 20s -unit", "-seed 2 -for 20s"} {
		t.Run(args, func(t *testing.T) {
			c := exec.Command(filepath.Join(dir, "torture"), append(strings.Fields(args), "-writer", filepath.Join(dir, "writer"))...)
			c.Dir = repo
			out, err := c.CombinedOutput()
			t.Logf("%s", out)
			if err != nil || !strings.Contains(string(out), `"failed":0`) {
				t.Error(err)
			}
		})
	}
}
