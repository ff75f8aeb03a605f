package imagestore_test

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore/imagetest"
)

// TestLimits pulls one image under limits that it keeps to, and under each that it exceeds.
func TestLimits(t *testing.T) {
	testns.Root(t)
	arm := small("arm")
	arm.Platform.OS, arm.Platform.Architecture = "linux", "arm64"
	amd := imagetest.Image{Layers: []imagetest.Layer{
		imagetest.Files(map[string]imagetest.File{"a/b/c/" + strings.Repeat("n", 60): random(100_000)}),
		imagetest.Files(map[string]imagetest.File{"zeros": {Content: make([]byte, 400_000)}, "y": file("y")}),
	}}
	srv := serve(t)
	srv.Put("img", "v1", imagetest.Index(arm, amd))
	for name, c := range map[string]struct {
		set  func(*imagestore.Limits)
		text string // empty: the image is pulled
	}{
		"none": {func(*imagestore.Limits) {}, ""},
		"roomy": {func(l *imagestore.Limits) {
			l.Layers, l.IndexEntries, l.Unpack.Depth, l.Unpack.Bytes = 2, 2, 4, 500_000
		}, ""},
		"manifest bytes":     {func(l *imagestore.Limits) { l.Manifest = 200 }, "manifest is larger than 200 bytes"},
		"config bytes":       {func(l *imagestore.Limits) { l.Config = 100 }, "at most 100"},
		"index entries":      {func(l *imagestore.Limits) { l.IndexEntries = 1 }, "2 entries, at most 1"},
		"layers":             {func(l *imagestore.Limits) { l.Layers = 1 }, "2 layers, at most 1"},
		"layer bytes":        {func(l *imagestore.Limits) { l.Layer = 50_000 }, "at most 50000"},
		"unpacked bytes":     {func(l *imagestore.Limits) { l.Unpack.Bytes = 300_000 }, "300000 bytes"},
		"files":              {func(l *imagestore.Limits) { l.Unpack.Entries = 1 }, "more than 1 entries"},
		"length of a path":   {func(l *imagestore.Limits) { l.Unpack.PathLength = 50 }, "path"},
		"length of a name":   {func(l *imagestore.Limits) { l.Unpack.NameLength = 50 }, "name"},
		"depth of a path":    {func(l *imagestore.Limits) { l.Unpack.Depth = 3 }, "deep"},
		"negative is no cap": {func(l *imagestore.Limits) { l.Unpack.Bytes = -1 }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := config(t, t.TempDir())
			c.set(&cfg.Limits)
			s := open(t, cfg)
			_, err := s.Pull(t.Context(), srv.Host+"/img:v1", nil)
			if c.text == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if !errdefs.IsResourceExhausted(err) && !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("%v, want %q", err, c.text)
			}
			clean(t, s, cfg.Root)
		})
	}
}
