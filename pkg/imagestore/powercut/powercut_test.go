package powercut_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore/imagetest"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore/registry"
)

func TestMain(m *testing.M) { testns.Main(m) }

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

// TestPowerCut pulls, tags, imports and removes images, and cuts the power at each flush and between flushes. Whatever was
// acknowledged before is there and whole, whatever was not is there whole or not at all, and nothing needs a repair.
func TestPowerCut(t *testing.T) {
	testns.Root(t)
	for fsType, size := range map[string]int64{"ext4": 40 << 20, "btrfs": 160 << 20, "xfs": 320 << 20} {
		t.Run(fsType, func(t *testing.T) { powerCut(t, fsType, size) })
	}
}

func powerCut(t *testing.T, fsType string, size int64) {
	srv, err := imagetest.Serve("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	a, b := image(1), image(2)
	srv.Put("a", "v1", a)
	srv.Put("b", "v1", b)
	first := format(t, fsType, size)
	dev := &device{disk: first.clone(), record: true}
	bench := newBench(t, fsType)
	mnt, stop, err := bench.mount(t, dev)
	if err != nil {
		t.Skip("no loop device here: ", err)
	}
	defer stop()
	s, err := open(filepath.Join(mnt, "store"))
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
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
		func() error { return s.Export(t.Context(), &archive, srv.Host+"/a:v1") },
		func() error { return s.Remove(t.Context(), a.ID.String()) },
		func() error { _, err := s.Import(t.Context(), &archive); return err },
		func() error { return s.Remove(t.Context(), srv.Host+"/b:v1") },
		pull("b"),
	} {
		if err := step(); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
		states = append(states, names(s))
		dev.mark(fmt.Sprint(i + 1))
	}
	_ = s.Close()
	stop()
	r := replay{bench: bench, states: states}
	r.run(t, first, dev.events)
}

type replay struct {
	bench  *bench
	states []string
	cuts   int
}

// run cuts at every flush: with all that was written before it, and with some of what was written behind it, which a
// disk may write in any order.
func (r *replay) run(t *testing.T, disk blocks, events []event) {
	rnd := rand.New(rand.NewPCG(11, 13))
	done, flushes := -1, 0
	for i, e := range events {
		switch {
		case e.mark != "":
			done++
			continue
		case !e.flush:
			disk.write(e.data, e.offset)
			continue
		}
		flushes++
		r.cut(t, disk.clone(), done, fmt.Sprintf("flush at event %d", i))
		// What follows up to the next flush may be there in part. A step acknowledged meanwhile must hold all the same.
		later, acked, wrote := disk.clone(), done, false
		for _, n := range events[i+1:] {
			if n.flush {
				break
			}
			if n.mark != "" {
				acked++
			} else if rnd.IntN(2) == 0 {
				later.write(n.data, n.offset)
				wrote = true
			}
		}
		if wrote || acked != done {
			r.cut(t, later, acked, fmt.Sprintf("some writes after event %d", i))
		}
		if t.Failed() {
			return
		}
	}
	t.Logf("%s: %d cuts at %d flushes of %d events, nothing damaged", r.bench.fs, r.cuts, flushes, len(events))
	if flushes < 10 {
		t.Error("too few flushes were seen")
	}
}

// cut opens the store that a disk holds. Step done is acknowledged; the next one may be under way.
func (r *replay) cut(t *testing.T, disk blocks, done int, where string) {
	t.Helper()
	r.cuts++
	mnt, stop, err := r.bench.mount(t, &device{disk: disk})
	if err != nil {
		t.Errorf("%s: %v", where, err)
		return
	}
	defer stop()
	s, err := open(filepath.Join(mnt, "store"))
	if err != nil {
		t.Errorf("%s: open: %v", where, err)
		return
	}
	defer s.Close()
	got := names(s)
	done = max(done, 0)
	if got != r.states[done] && (done+1 >= len(r.states) || got != r.states[done+1]) {
		t.Errorf("%s: the store lists %q after step %d, which left %q", where, got, done, r.states[done])
	}
	report, err := s.Verify(t.Context(), false)
	if err != nil || len(report.Problems) > 0 {
		t.Errorf("%s: %+v, %v", where, report, err)
	}
}
