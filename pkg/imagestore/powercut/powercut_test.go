package powercut_test

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore/imagetest"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore/registry"
)

func TestMain(m *testing.M) { testns.Main(m) }

func toString(v any) string { return fmt.Sprint(v) }

func open(root string) (*imagestore.Disk, error) {
	return imagestore.Open(imagestore.Config{
		Root: root, Platform: &ocispec.Platform{OS: "linux", Architecture: "amd64"},
		Registry: registry.Config{Attempts: 1}, Logger: slog.New(slog.DiscardHandler),
	})
}

// image has a layer of its own and one that all share.
func image(seed uint64) imagetest.Built {
	r := rand.New(rand.NewPCG(seed, 7))
	files := map[string]imagetest.File{}
	for i := range 60 {
		b := make([]byte, r.IntN(20_000))
		for j := range b {
			b[j] = byte(r.IntN(64))
		}
		files[fmt.Sprintf("usr/lib/%d/%d", i/10, i)] = imagetest.File{Content: b}
	}
	return imagetest.Image{Layers: []imagetest.Layer{
		imagetest.Files(map[string]imagetest.File{"etc/os-release": {Content: []byte("shared")}, "bin/sh": {Content: make([]byte, 300_000)}}),
		imagetest.Files(files),
	}}.Build()
}

// names is what a store lists, as text.
func names(s *imagestore.Disk) string {
	var out []string
	for _, i := range s.List() {
		out = append(out, i.ID+" "+strings.Join(i.RepoTags, " "))
	}
	return strings.Join(out, "\n")
}

// TestPowerCut pulls, tags and removes images, and cuts the power at each flush and between flushes. Whatever was
// acknowledged before is there and whole, whatever was not is there whole or not at all, and nothing needs a repair.
func TestPowerCut(t *testing.T) {
	testns.Root(t)
	srv, err := imagetest.Serve("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	a, b := image(1), image(2)
	srv.Put("a", "v1", a)
	srv.Put("b", "v1", b)
	dev, mnt, disk, stop := record(t, 40<<20)
	defer stop()
	s, err := open(filepath.Join(mnt, "store"))
	if err != nil {
		t.Fatal(err)
	}
	pull := func(name string) func() error {
		return func() error { _, err := s.Pull(t.Context(), srv.Host+"/"+name+":v1", nil); return err }
	}
	// Each step leaves a state; the events between two marks belong to the step between them.
	states := []string{names(s)}
	dev.mark("0")
	for i, step := range []func() error{
		pull("a"),
		func() error { return s.Tag(t.Context(), a.ID.String(), "other/name:v2") },
		pull("b"),
		func() error { return s.Remove(t.Context(), a.ID.String()) },
		pull("a"),
		func() error { return s.Remove(t.Context(), srv.Host+"/b:v1") },
	} {
		if err := step(); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
		states = append(states, names(s))
		dev.mark(fmt.Sprint(i + 1))
	}
	_ = s.Close()
	stop()
	replay(t, disk, dev.events, states)
}

// replay cuts at every flush: with all that was written before it, and with some of what was written behind it, which a
// disk may write in any order.
func replay(t *testing.T, disk []byte, events []event, states []string) {
	rnd := rand.New(rand.NewPCG(11, 13))
	img := filepath.Join(t.TempDir(), "cut")
	done, cuts := -1, 0
	for i, e := range events {
		switch {
		case e.mark != "":
			done++
			continue
		case !e.flush:
			copy(disk[e.offset:], e.data)
			continue
		}
		cut(t, img, disk, states, done, fmt.Sprintf("flush at event %d", i))
		cuts++
		// What follows up to the next flush may be there in part. A step acknowledged meanwhile must hold all the same.
		later, acked := slices.Clone(disk), done
		for _, n := range events[i+1:] {
			if n.flush {
				break
			}
			if n.mark != "" {
				acked++
			} else if rnd.IntN(2) == 0 {
				copy(later[n.offset:], n.data)
			}
		}
		cut(t, img, later, states, acked, fmt.Sprintf("some writes after event %d", i))
		cuts++
		if t.Failed() {
			return
		}
	}
	t.Logf("%d cuts at %d events, nothing damaged", cuts, len(events))
	if cuts < 20 {
		t.Error("too few flushes were seen")
	}
}

// cut opens the store that a disk holds. Step done is acknowledged; the next one may be under way.
func cut(t *testing.T, img string, disk []byte, states []string, done int, where string) {
	t.Helper()
	if err := os.WriteFile(img, disk, 0o600); err != nil {
		t.Fatal(err)
	}
	mnt := t.TempDir()
	if out, err := exec.Command("mount", "-o", "loop", img, mnt).CombinedOutput(); err != nil {
		t.Errorf("%s: mount: %v: %s", where, err, out)
		return
	}
	defer command(t, "umount", mnt)
	s, err := open(filepath.Join(mnt, "store"))
	if err != nil {
		t.Errorf("%s: open: %v", where, err)
		return
	}
	defer s.Close()
	got := names(s)
	if done < 0 {
		done = 0
	}
	if got != states[done] && (done+1 >= len(states) || got != states[done+1]) {
		t.Errorf("%s: the store lists %q after step %d, which left %q", where, got, done, states[done])
	}
	r, err := s.Verify(t.Context(), false)
	if err != nil || len(r.Problems) > 0 {
		t.Errorf("%s: %+v, %v", where, r, err)
	}
}
