package imagestore_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore/imagetest"
)

const crashEnv = "IMAGESTORE_TEST_CRASH"

// crashOperations are what is killed; before each, "pull" apart, the image is pulled.
var crashOperations = map[string]func(ctx context.Context, s *imagestore.Disk, ref string) error{
	"pull": func(ctx context.Context, s *imagestore.Disk, ref string) error {
		_, err := s.Pull(ctx, ref, nil)
		return err
	},
	"remove": func(ctx context.Context, s *imagestore.Disk, ref string) error { return s.Remove(ctx, ref) },
	"tag": func(ctx context.Context, s *imagestore.Disk, ref string) error {
		return s.Tag(ctx, ref, "other/name:v2")
	},
	"pin": func(ctx context.Context, s *imagestore.Disk, ref string) error { return s.Pin(ctx, ref, true) },
	"prune": func(ctx context.Context, s *imagestore.Disk, _ string) error {
		_, err := s.Prune(ctx, true)
		return err
	},
	"repair": func(ctx context.Context, s *imagestore.Disk, _ string) error {
		_, err := s.Repair(ctx, false)
		return err
	},
	"import": func(ctx context.Context, s *imagestore.Disk, ref string) error {
		var archive bytes.Buffer
		if err := s.Export(ctx, &archive, ref); err != nil {
			return err
		}
		if err := s.Remove(ctx, ref); err != nil {
			return err
		}
		_, err := s.Import(ctx, &archive)
		return err
	},
	"packed": func(ctx context.Context, s *imagestore.Disk, ref string) error {
		var archive bytes.Buffer
		if err := s.Export(ctx, &archive, ref); err != nil {
			return err
		}
		if err := s.Remove(ctx, ref); err != nil {
			return err
		}
		if _, err := s.ImportPacked(ctx, &archive); err != nil {
			return err
		}
		_, err := s.View(ref)
		return err
	},
	"snapshot": func(ctx context.Context, s *imagestore.Disk, ref string) error {
		r, err := s.Snapshot(ctx, "killed", ref)
		if err != nil {
			return err
		}
		s.MountTargets(r, commonTargets)
		return s.RemoveSnapshot(ctx, "killed")
	},
}

// TestCrashChild is the process that the crash tests kill: at the step whose number is in its environment it does so itself.
func TestCrashChild(t *testing.T) {
	args := strings.Split(os.Getenv(crashEnv), "|")
	if len(args) != 4 {
		t.Skip("only as a child of the crash tests")
	}
	root, ref, what := args[0], args[1], args[3]
	last, err := strconv.ParseInt(args[2], 10, 64) // 0: all steps
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, config(t, root))
	if what != "pull" {
		pull(t, s, ref)
	}
	if what == "repair" {
		damage(t, root)
	}
	var n atomic.Int64
	imagestore.OnStep(func(string) {
		if n.Add(1) == last {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	})
	if err := crashOperations[what](context.Background(), s, ref); err != nil {
		t.Fatal(err)
	}
	_ = s.Close() // snapshots are removed behind the call
	fmt.Printf("survived %d steps\n", n.Load())
}

// damage empties a file of a layer and a layer's blob.
func damage(t *testing.T, root string) {
	t.Helper()
	files, _ := filepath.Glob(filepath.Join(root, "layers/sha256/*/fs/bin/sh"))
	blobs, _ := filepath.Glob(filepath.Join(root, "blobs/sha256/*"))
	if len(files) == 0 || len(blobs) == 0 {
		t.Fatal("nothing to damage")
	}
	for _, f := range []string{files[0], blobs[0]} {
		if err := os.Truncate(f, 1); err != nil {
			t.Fatal(err)
		}
	}
}

var survived = regexp.MustCompile(`survived (\d+) steps`)

// child runs TestCrashChild; started is called with its pid. It returns whether the child was killed, and else how many steps it
// took.
func child(t *testing.T, args []string, started func(pid int)) (killed bool, steps int) {
	t.Helper()
	c := exec.Command("/proc/self/exe", "-test.run=^TestCrashChild$", "-test.v")
	c.Env = append(os.Environ(), crashEnv+"="+strings.Join(args, "|"))
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	started(c.Process.Pid)
	err := c.Wait()
	if ws, ok := c.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() && ws.Signal() == syscall.SIGKILL {
		return true, 0
	}
	m := survived.FindStringSubmatch(out.String())
	if err != nil || m == nil {
		t.Fatalf("the child neither finished nor died: %v: %s", err, &out)
	}
	steps, _ = strconv.Atoi(m[1])
	return false, steps
}

// TestCrashSteps kills each operation at each of its steps on disk. Then the next start finds the store as it was or as it was to be,
// and not a byte besides.
func TestCrashSteps(t *testing.T) {
	testns.Root(t)
	built := threeLayers().Build()
	kills := 0
	for what := range crashOperations {
		t.Run(what, func(t *testing.T) {
			srv := serve(t)
			srv.Put("img", "v1", built)
			ref := srv.Host + "/img:v1"
			_, steps := child(t, []string{filepath.Join(t.TempDir(), "store"), ref, "0", what}, func(int) {})
			if steps == 0 {
				t.Fatal("no step")
			}
			for n := 1; n <= steps; n++ {
				cfg := config(t, filepath.Join(t.TempDir(), "store"))
				if killed, _ := child(t, []string{cfg.Root, ref, strconv.Itoa(n), what}, func(int) {}); killed {
					kills++ // steps that run side by side are not always as many
				}
				s := open(t, cfg)
				checkNothingLeaked(t, s, cfg.Root, built)
				if what == "repair" { // what was damaged still is, or not
					if _, err := s.Repair(t.Context(), false); err != nil {
						t.Error(err)
					}
				}
				img := pull(t, s, ref)
				checkTree(t, s, img.ID)
				if err := s.Remove(t.Context(), img.ID); err != nil {
					t.Fatal(err)
				}
				clean(t, s, cfg.Root)
				_ = s.Close()
				if t.Failed() {
					t.Fatalf("after step %d of %d", n, steps)
				}
			}
		})
	}
	t.Logf("%d kills, nothing leaked", kills)
}

// checkNothingLeaked looks at a store right after its start: it holds the image whole, or nothing.
func checkNothingLeaked(t *testing.T, s *imagestore.Disk, root string, built imagetest.Built) {
	t.Helper()
	checkUsage(t, s, root)
	blobs, layers := 0, 0
	switch list := s.List(); {
	case len(list) == 1 && list[0].ID == built.ID.String():
		blobs, layers = len(built.Blobs), len(built.Parsed.Layers)
		if strings.HasSuffix(t.Name(), "/packed") { // unpacked one by one when the first container wants them
			names, _ := os.ReadDir(filepath.Join(root, "layers/sha256"))
			layers = min(layers, len(names))
		}
		if r, err := s.Verify(t.Context(), false); err != nil || len(r.Problems) > 0 && !strings.HasSuffix(t.Name(), "/repair") {
			t.Errorf("%+v %v", r, err)
		}
	case len(list) != 0:
		t.Errorf("%d images are listed", len(list))
	}
	want := map[string]int{"blobs/sha256": blobs, "layers/sha256": layers, "ingest": 0, "trash": 0, "reuse": 0, "snapshots": len(s.Snapshots())}
	for dir, n := range want {
		names, err := os.ReadDir(filepath.Join(root, dir))
		if err != nil || len(names) != n && !(strings.HasSuffix(t.Name(), "/repair") && len(names) == n-1) {
			t.Errorf("%s holds %d, want %d: %v %v", dir, len(names), n, names, err)
		}
	}
	names, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range names {
		switch e.Name() {
		case "blobs", "images.json", "ingest", "layers", "lock", "oci-layout", "open", "reuse", "snapshots", "spare", "targets", "trash", "version":
		default:
			t.Errorf("%s is left", e.Name())
		}
	}
	for _, key := range s.Snapshots() { // a container's, which its record would tell to remove
		if err := s.RemoveSnapshot(t.Context(), key); err != nil {
			t.Error(err)
		}
	}
}
