package imagestore_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/seed-9a14075a/cri-server/internal/testns"
)

const unprivilegedEnv = "IMAGESTORE_TEST_UNPRIVILEGED"

// TestUnprivilegedChild pulls and makes a snapshot without any capability.
func TestUnprivilegedChild(t *testing.T) {
	root, ref, ok := strings.Cut(os.Getenv(unprivilegedEnv), "|")
	if !ok {
		t.Skip("only as a child of TestUnprivileged")
	}
	cfg := config(t, root)
	s := open(t, cfg)
	if name, why := s.Snapshotter(); name != "copy" {
		t.Errorf("snapshotter %s: %s", name, why)
	}
	img := pull(t, s, ref)
	checkTree(t, s, img.ID)
	checkUsage(t, s, cfg.Root)
}

// TestUnprivileged fills a store as nobody, with neither mounts nor device nodes nor owners, as in the build of a node
// image; then root opens it with overlay.
func TestUnprivileged(t *testing.T) {
	testns.Root(t)
	base, err := os.MkdirTemp("", "imagestore")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(base)
	const nobody = 65534
	if err := os.Chown(base, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	srv := serve(t)
	srv.Put("img", "v1", threeLayers().Build())
	ref := srv.Host + "/img:v1"
	cfg := config(t, filepath.Join(base, "store"))
	c := exec.Command("/proc/self/exe", "-test.run=^TestUnprivilegedChild$", "-test.v")
	c.Env = append(os.Environ(), unprivilegedEnv+"="+cfg.Root+"|"+ref, "TMPDIR="+base)
	c.Dir = base
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	if err := c.Run(); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	s := open(t, cfg)
	if name, why := s.Snapshotter(); name != "overlay" {
		t.Fatalf("snapshotter %s: %s", name, why)
	}
	checkUsage(t, s, cfg.Root)
	img, err := s.Get(ref)
	if err != nil {
		t.Fatal(err)
	}
	checkTree(t, s, img.ID)
}
