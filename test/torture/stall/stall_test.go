package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestStall are short runs, with cri-monitor as a unit and without, and with upgrades instead of kills.
func TestStall(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	repo, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(repo, "bin", "cri-server")); err != nil {
		t.Skip("bin/cri-server is missing: make build")
	}
	program := filepath.Join(t.TempDir(), "stall")
	build := exec.Command("go", "build", "-o", program, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0") // it runs in a container too
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, args := range [][]string{
		{"-for", "6s", "-server", "500ms", "-monitor", "1300ms"},
		{"-for", "4s", "-server", "0", "-monitor", "300ms", "-unit=false"},
		{"-upgrades", "40", "-rate", "10"},
	} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			c := exec.Command(program, args...)
			c.Dir = repo
			out, err := c.CombinedOutput()
			t.Logf("%s", out)
			if err != nil || !strings.Contains(string(out), "lost 0\n") {
				t.Error(err)
			}
		})
	}
}
