package imagestore_test

import (
	"context"
	"slices"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore/imagetest"
)

func TestPush(t *testing.T) {
	testns.Root(t)
	srv, other := serve(t), serve(t)
	built := threeLayers().Build()
	srv.Put("img", "v1", built)
	s := open(t, config(t, t.TempDir()))
	img := pull(t, s, srv.Host+"/img:v1")
	to := other.Host + "/copy/of:v2"
	if err := s.Push(t.Context(), to, nil); !errdefs.IsNotFound(err) {
		t.Errorf("a name that no image has: %v", err)
	}
	if err := s.Tag(t.Context(), img.ID, to); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time the registry has all
		if err := s.Push(t.Context(), to, nil); err != nil {
			t.Fatal(err)
		}
	}
	uploads := 0
	for _, r := range other.Requests() {
		if r == "POST /v2/copy/of/blobs/uploads/" {
			uploads++
		}
	}
	if uploads != 4 { // config and three layers
		t.Errorf("%d uploads", uploads)
	}
	again := open(t, config(t, t.TempDir()))
	if got := pull(t, again, to); got.ID != img.ID {
		t.Errorf("ID %s, want %s", got.ID, img.ID)
	}
	if err := s.Push(t.Context(), other.Host+"/copy/of@"+built.Manifest.Digest.String(), nil); !errdefs.IsInvalidArgument(err) {
		t.Errorf("by digest: %v", err)
	}
}

func TestPruneAndUsage(t *testing.T) {
	testns.Root(t)
	srv := serve(t)
	for i, name := range []string{"used", "pinned", "idle", "untagged"} {
		srv.Put(name, "v1", imagetest.Image{Layers: []imagetest.Layer{
			imagetest.Files(map[string]imagetest.File{"shared": random(50_000)}),
			imagetest.Files(map[string]imagetest.File{"own": random(100_000 + i)}),
		}}.Build())
	}
	s := open(t, config(t, t.TempDir()))
	ids := map[string]string{}
	for _, name := range []string{"used", "pinned", "idle", "untagged"} {
		ids[name] = pull(t, s, srv.Host+"/"+name+":v1").ID
	}
	if _, err := s.Snapshot(t.Context(), "c", ids["used"]); err != nil {
		t.Fatal(err)
	}
	if err := s.Pin(t.Context(), ids["pinned"], true); err != nil {
		t.Fatal(err)
	}
	// A tag that moves to another image leaves the first with its digest only.
	srv.Put("untagged", "v1", threeLayers().Build())
	moved := pull(t, s, srv.Host+"/untagged:v1").ID
	for _, u := range s.DiskUsage() {
		want := int64(50_000)
		if u.ID == moved {
			want = 0
		}
		if u.Shared < want || want == 0 && u.Shared != 0 || u.Blobs == 0 || u.Layers == 0 {
			t.Errorf("%+v", u)
		}
		if n := btoi(u.ID == ids["used"]); u.Snapshots != n {
			t.Errorf("%d snapshots of %v", u.Snapshots, u.Names)
		}
	}
	check := func(all bool, want ...string) {
		t.Helper()
		before := s.Usage().Bytes
		p, err := s.Prune(t.Context(), all)
		slices.Sort(want)
		if err != nil || !slices.Equal(p.Images, want) || p.Bytes != before-s.Usage().Bytes || p.Bytes == 0 && len(want) > 0 {
			t.Errorf("all=%v: %+v, %v; want %v", all, p, err, want)
		}
	}
	check(false, ids["untagged"])
	check(false)
	check(true, ids["idle"], moved)
	if n := len(s.List()); n != 2 {
		t.Errorf("%d images left", n)
	}
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

func TestProgress(t *testing.T) {
	testns.Root(t)
	srv := serve(t)
	built := threeLayers().Build()
	srv.Put("img", "v1", built)
	s := open(t, config(t, t.TempDir()))
	for _, present := range []bool{false, true} {
		var p imagestore.Progress
		if _, err := s.Pull(imagestore.WithProgress(context.Background(), &p), srv.Host+"/img:v1", nil); err != nil {
			t.Fatal(err)
		}
		layers := p.Layers()
		if present { // nothing had to be done
			if len(layers) != 0 {
				t.Errorf("%+v", layers)
			}
			continue
		}
		if len(layers) != 3 {
			t.Fatalf("%+v", layers)
		}
		for _, l := range layers {
			if !l.Done || l.Present || l.Received != l.Size || l.Size == 0 {
				t.Errorf("%+v", l)
			}
		}
	}
}
