package admin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"

	"github.com/seed-9a14075a/cri-server/pkg/imagestore"
	"github.com/seed-9a14075a/cri-server/pkg/operation"
)

// fake keeps archives as images of their text.
type fake struct {
	images map[string]string // name → content
	pinned map[string]bool
	broken bool
}

func (f *fake) ImportPacked(ctx context.Context, r io.Reader) ([]*imagestore.Image, error) {
	return f.Import(ctx, r)
}

func (f *fake) Import(_ context.Context, r io.Reader) ([]*imagestore.Image, error) {
	b, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	name, ok := strings.CutPrefix(string(b), "archive of ")
	if !ok {
		return nil, fmt.Errorf("import: no archive: %w", errdefs.ErrInvalidArgument)
	}
	f.images[name] = string(b)
	return []*imagestore.Image{{ID: "sha256:1", RepoTags: []string{name}, Size: uint64(len(b))}}, nil
}

func (f *fake) Export(_ context.Context, w io.Writer, refs ...string) error {
	for _, r := range refs {
		if _, err := io.WriteString(w, f.images[r]); err != nil {
			return err
		}
	}
	if f.broken {
		return errors.New("blob sha256:2 is\ndamaged")
	}
	return nil
}

func (f *fake) Tag(_ context.Context, ref, name string) error {
	if _, err := f.Get(ref); err != nil {
		return err
	}
	f.images[name] = f.images[ref]
	return nil
}

func (f *fake) Pin(_ context.Context, ref string, pinned bool) error {
	f.pinned[ref] = pinned
	return nil
}

func (f *fake) Get(ref string) (*imagestore.Image, error) {
	if _, ok := f.images[ref]; !ok {
		return nil, fmt.Errorf("image %s: %w", ref, errdefs.ErrNotFound)
	}
	return &imagestore.Image{}, nil
}

func (f *fake) Pull(ctx context.Context, ref string, auth *imagestore.Auth) (*imagestore.Image, error) {
	if auth != nil && auth.Password != "right" {
		return nil, fmt.Errorf("pull %s: %w", ref, errdefs.ErrPermissionDenied)
	}
	f.images[ref] = "pulled"
	return &imagestore.Image{ID: "sha256:2", RepoTags: []string{ref}}, nil
}

func (f *fake) Push(_ context.Context, ref string, _ *imagestore.Auth) error {
	_, err := f.Get(ref)
	return err
}

func (f *fake) Remove(_ context.Context, ref string) error {
	delete(f.images, ref)
	return nil
}

func (f *fake) Verify(_ context.Context, quick bool, refs ...string) (*imagestore.Report, error) {
	return &imagestore.Report{Blobs: len(refs), Problems: []imagestore.Problem{{What: fmt.Sprint("quick ", quick)}}}, nil
}

func (f *fake) Repair(context.Context, bool, ...string) (*imagestore.Report, error) {
	return &imagestore.Report{Dropped: []string{"sha256:1"}}, nil
}

func (f *fake) Prune(_ context.Context, all bool) (imagestore.Pruned, error) {
	if !all {
		return imagestore.Pruned{}, fmt.Errorf("prune: %w", errdefs.ErrUnavailable)
	}
	return imagestore.Pruned{Bytes: 7}, nil
}

func (*fake) DiskUsage() []imagestore.ImageUsage { return nil }

func start(t *testing.T, f *fake) *Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	running := func() []operation.Timeline {
		return []operation.Timeline{{Key: "pull x", Running: true, Total: time.Second, Begin: time.Unix(1, 0).UTC()}}
	}
	srv := &http.Server{Handler: Handler(f, running, nil, slog.New(slog.DiscardHandler))}
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(l) }()
	c := NewClient(socket)
	t.Cleanup(func() { c.Close(); srv.Close(); <-done })
	return c
}

func TestRoundTrip(t *testing.T) {
	f := &fake{images: map[string]string{}, pinned: map[string]bool{}}
	c := start(t, f)
	big := "archive of " + strings.Repeat("x", 1<<20)
	got, err := c.Import(t.Context(), strings.NewReader(big), false)
	if err != nil || len(got) != 1 || got[0].ID != "sha256:1" || got[0].Size != uint64(len(big)) {
		t.Fatalf("%.200v, %v", got, err)
	}
	if _, err := c.Import(t.Context(), strings.NewReader("archive of a"), true); err != nil {
		t.Fatal(err)
	}
	if err := c.Tag(t.Context(), "a", "b:1"); err != nil {
		t.Fatal(err)
	}
	if err := c.Pin(t.Context(), "a", true); err != nil || !f.pinned["a"] {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := c.Export(t.Context(), &b, "a", "b:1"); err != nil || b.String() != "archive of aarchive of a" {
		t.Fatalf("%s, %v", b.String(), err)
	}
	if p, err := c.Process(t.Context()); err != nil || p.Goroutines < 2 {
		t.Errorf("process: %+v, %v", p, err)
	}
	ops, err := c.Operations(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]operation.Timeline{{Key: "pull x", Running: true, Total: time.Second, Begin: time.Unix(1, 0).UTC()}}, ops); diff != "" {
		t.Error(diff)
	}
}

func TestErrorsKeepTextAndKind(t *testing.T) {
	f := &fake{images: map[string]string{"a": "archive of a"}}
	c := start(t, f)
	_, err := c.Import(t.Context(), strings.NewReader("nonsense"), false)
	if !errdefs.IsInvalidArgument(err) || !strings.HasPrefix(err.Error(), "import: no archive") {
		t.Error(err)
	}
	if err := c.Tag(t.Context(), "none", "b"); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "image none") {
		t.Error(err)
	}
	if err := c.Export(t.Context(), io.Discard, "none"); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	if err := c.Export(t.Context(), io.Discard); !errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
	f.broken = true
	if err := c.Export(t.Context(), io.Discard, "a"); err == nil || !strings.Contains(err.Error(), "blob sha256:2 is damaged") {
		t.Error(err)
	}
	if err := c.post(t.Context(), "/images/tag", map[string]string{"bad": "x"}); !errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
	if err := c.post(t.Context(), "/images/tag", strings.Repeat("x", 2*maxRequest)); !errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
	if err := c.call(t.Context(), http.MethodGet, "/nothing", nil, nil); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Operations(ctx); !errdefs.IsCanceled(err) {
		t.Error(err)
	}
	if _, err := NewClient(filepath.Join(t.TempDir(), "none")).Operations(t.Context()); !errdefs.IsUnavailable(err) {
		t.Error(err)
	}
}

func TestContent(t *testing.T) {
	f := &fake{images: map[string]string{"a": "x"}}
	c := start(t, f)
	ctx := t.Context()
	if i, err := c.Pull(ctx, "b", &imagestore.Auth{Password: "right"}, nil); err != nil || i.ID != "sha256:2" || f.images["b"] == "" {
		t.Errorf("%+v, %v", i, err)
	}
	if _, err := c.Pull(ctx, "b", &imagestore.Auth{Password: "wrong"}, nil); !errdefs.IsPermissionDenied(err) || !strings.HasPrefix(err.Error(), "pull b: ") {
		t.Error(err)
	}
	if err := c.Push(ctx, "a", nil); err != nil {
		t.Error(err)
	}
	if err := c.Push(ctx, "none", nil); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	if err := c.Untag(ctx, "b"); err != nil || f.images["b"] != "" {
		t.Error(err)
	}
	if err := c.Untag(ctx, "b"); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	if err := c.Untag(ctx, strings.Repeat("a", 64)); !errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
	if r, err := c.Verify(ctx, true, false, "a", "b"); err != nil || r.Blobs != 2 || r.Problems[0].What != "quick true" {
		t.Errorf("%+v, %v", r, err)
	}
	if r, err := c.Verify(ctx, false, true); err != nil || len(r.Dropped) != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	if p, err := c.Prune(ctx, true); err != nil || p.Bytes != 7 {
		t.Errorf("%+v, %v", p, err)
	}
	if _, err := c.Prune(ctx, false); !errdefs.IsUnavailable(err) {
		t.Error(err)
	}
	if list, err := c.DiskUsage(ctx); err != nil || len(list) != 0 {
		t.Errorf("%v, %v", list, err)
	}
}

// TestContention: profiles of waiting are of a given time, and nothing is taken down at others.
func TestContention(t *testing.T) {
	h := Handler(nil, nil, nil, slog.New(slog.DiscardHandler))
	for path, want := range map[string]int{
		"/debug/pprof/mutex": http.StatusBadRequest, "/debug/pprof/block": http.StatusBadRequest,
		"/debug/pprof/mutex?seconds=1": http.StatusOK, "/debug/pprof/block?seconds=1": http.StatusOK,
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
		if w.Code != want || want == http.StatusOK && w.Body.Len() == 0 {
			t.Errorf("%s: %d, %d bytes", path, w.Code, w.Body.Len())
		}
	}
	if n := runtime.SetMutexProfileFraction(-1); n != 0 {
		t.Errorf("one of %d contended locks is still taken down", n)
	}
}
