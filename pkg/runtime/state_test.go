package runtime

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/handler"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/monitor"
)

// What an OCI runtime has left of a container that nobody knows goes with it, and nothing else does.
func TestRuntimeStateGoes(t *testing.T) {
	root := t.TempDir()
	table, err := handler.NewTable([]handler.Handler{{Name: "runc", OCI: &monitor.OCIRuntime{Path: "/bin/true", Root: root}}, {Name: "native"}}, "native")
	if err != nil {
		t.Fatal(err)
	}
	c, _, _ := openFake(t, t.TempDir())
	c.cfg.Handlers = table
	for _, id := range []string{"aa", "ab"} {
		if err := os.MkdirAll(filepath.Join(root, id), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, id, "state.json"), []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"runc", "native", "removed-from-the-configuration"} {
		ctr := ctrOf("aa", Exited)
		ctr.Handler = name
		for range 2 {
			if err := c.takeDown(context.Background(), ctr); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	left, err := os.ReadDir(root)
	if err != nil || len(left) != 1 || left[0].Name() != "ab" {
		t.Errorf("%v %v", left, err)
	}
}
