package imagestore_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore/imagetest"
)

// fourLayers are fetched one by one where the store's budget is one layer.
func fourLayers() imagetest.Built {
	img := imagetest.Image{}
	for i := range 4 {
		img.Layers = append(img.Layers, imagetest.Files(map[string]imagetest.File{fmt.Sprint("f", i): random(300_000 + i)}))
	}
	return img.Build()
}

func isBlob(r *http.Request) bool { return strings.Contains(r.URL.Path, "/blobs/") }

// TestTokenExpires pulls from a registry whose tokens are good for two requests.
func TestTokenExpires(t *testing.T) {
	testns.Root(t)
	built := fourLayers()
	srv := serve(t)
	srv.Put("test/img", "v1", built)
	var given, left, refused atomic.Int64
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		left.Store(2)
		_, _ = fmt.Fprintf(w, `{"access_token":"t%d"}`, given.Add(1))
	}))
	defer tokens.Close()
	srv.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") == fmt.Sprintf("Bearer t%d", given.Load()) && left.Add(-1) >= 0 {
			return false
		}
		refused.Add(1)
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+tokens.URL+`",service="svc",scope="repository:test/img:pull",error="invalid_token"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	cfg := config(t, t.TempDir())
	cfg.ConcurrentLayers = 1
	s := open(t, cfg)
	if img := pull(t, s, srv.Host+"/test/img:v1"); img.ID != built.ID.String() {
		t.Error(img.ID)
	}
	if given.Load() < 3 || refused.Load() < 3 {
		t.Errorf("%d tokens for %d refusals", given.Load(), refused.Load())
	}
}

// TestExpiredRedirect is sent to a blob host whose first address isn't good any more.
func TestExpiredRedirect(t *testing.T) {
	testns.Root(t)
	built := oneLayer().Build()
	var signature atomic.Int64
	blobs := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("sig") != "2" {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		_, _ = w.Write(built.Blobs[digest.Digest(filepath.Base(r.URL.Path))])
	}))
	defer blobs.Close()
	srv := serve(t)
	srv.Put("img", "v1", built)
	srv.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, built.Parsed.Layers[0].Digest.String()) {
			http.Redirect(w, r, fmt.Sprintf("%s%s?sig=%d", blobs.URL, r.URL.Path, signature.Add(1)), http.StatusTemporaryRedirect)
			return true
		}
		return false
	})
	s := open(t, config(t, t.TempDir()))
	pull(t, s, srv.Host+"/img:v1")
}

// TestRetryAfter waits as long as the registry asks for.
func TestRetryAfter(t *testing.T) {
	testns.Root(t)
	for name, c := range map[string]struct {
		after string
		least time.Duration
	}{"seconds": {"1", time.Second}, "a date": {"", time.Second}, "nonsense": {"soon", 0}} {
		t.Run(name, func(t *testing.T) {
			srv := serve(t)
			srv.Put("img", "v1", oneLayer().Build())
			var refused time.Time // by the registry, one request after the other
			srv.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
				if !refused.IsZero() {
					if waited := time.Since(refused); waited < c.least && isManifest(r) {
						t.Errorf("asked again after %s", waited)
					}
					return false
				}
				refused = time.Now()
				after := c.after
				if after == "" { // dates count whole seconds: the next one but one is at least a second away
					after = refused.Add(2 * time.Second).UTC().Format(http.TimeFormat)
				}
				w.Header().Set("Retry-After", after)
				w.WriteHeader(http.StatusTooManyRequests)
				return true
			})
			cfg := config(t, t.TempDir())
			cfg.Registry.MaxBackoff = 10 * time.Second
			s := open(t, cfg)
			pull(t, s, srv.Host+"/img:v1")
		})
	}
}

// TestTrickle pulls from servers that send a byte now and then and never end.
func TestTrickle(t *testing.T) {
	testns.Root(t)
	built := oneLayer().Build()
	trickle := func(w http.ResponseWriter, r *http.Request, length int) {
		w.Header().Set("Content-Length", fmt.Sprint(length))
		if strings.HasPrefix(r.Header.Get("Range"), "bytes=") {
			w.Header().Del("Content-Length")
			w.WriteHeader(http.StatusPartialContent)
		}
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for range length {
			select {
			case <-tick.C:
			case <-r.Context().Done():
				return
			}
			if _, err := w.Write([]byte{0x1f}); err != nil {
				return
			}
			w.(http.Flusher).Flush()
		}
	}
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { trickle(w, r, 1<<20) }))
	defer tokens.Close()
	for name, f := range map[string]func(w http.ResponseWriter, r *http.Request) bool{
		"blob": func(w http.ResponseWriter, r *http.Request) bool {
			if isBlob(r) && !strings.HasSuffix(r.URL.Path, built.ID.String()) {
				trickle(w, r, len(built.Blobs[built.Parsed.Layers[0].Digest]))
				return true
			}
			return false
		},
		"manifest": func(w http.ResponseWriter, r *http.Request) bool { trickle(w, r, 1<<20); return true },
		"token": func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("WWW-Authenticate", `Bearer realm="`+tokens.URL+`",service="svc"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		},
	} {
		t.Run(name, func(t *testing.T) {
			srv := serve(t)
			srv.Put("img", "v1", built)
			srv.Intercept(f)
			cfg := config(t, t.TempDir())
			cfg.Registry.StallTimeout = 100 * time.Millisecond
			s := open(t, cfg)
			_, err := s.Pull(t.Context(), srv.Host+"/img:v1", &imagestore.Auth{Username: "u", Password: "p"})
			if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), srv.Host) {
				t.Errorf("%v", err)
			}
			clean(t, s, cfg.Root)
		})
	}
}

// TestDigestPulls asks by digest: what comes must have it, whatever the headers say, and headers are not needed.
func TestDigestPulls(t *testing.T) {
	testns.Root(t)
	built, other := small("a").Build(), small("b").Build()
	for name, c := range map[string]struct {
		body   []byte
		header string
		good   bool
	}{
		"as it should be":    {built.Blobs[built.Manifest.Digest], built.Manifest.Digest.String(), true},
		"no header":          {built.Blobs[built.Manifest.Digest], "", true},
		"header of another":  {built.Blobs[built.Manifest.Digest], other.Manifest.Digest.String(), true},
		"another's manifest": {other.Blobs[other.Manifest.Digest], built.Manifest.Digest.String(), false},
		"nothing":            {nil, built.Manifest.Digest.String(), false},
	} {
		t.Run(name, func(t *testing.T) {
			srv := serve(t)
			srv.Put("img", "v1", built)
			srv.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
				if !isManifest(r) {
					return false
				}
				w.Header().Set("Content-Type", built.Manifest.MediaType)
				if c.header != "" {
					w.Header().Set("Docker-Content-Digest", c.header)
				}
				_, _ = w.Write(c.body)
				return true
			})
			s := open(t, config(t, t.TempDir()))
			img, err := s.Pull(t.Context(), srv.Host+"/img@"+built.Manifest.Digest.String(), nil)
			switch {
			case c.good && (err != nil || img.ID != built.ID.String()):
				t.Errorf("%+v %v", img, err)
			case !c.good && !errdefs.IsDataLoss(err):
				t.Errorf("%v", err)
			}
		})
	}
}

// TestForeignURLs pulls an image whose manifest names other places for a layer: they are never asked.
func TestForeignURLs(t *testing.T) {
	testns.Root(t)
	trap := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("asked for %s with Authorization %q", r.URL, r.Header.Get("Authorization"))
	}))
	defer trap.Close()
	built := oneLayer().Build()
	for _, mt := range []string{ocispec.MediaTypeImageLayerGzip, "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip", "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"} {
		m := built.Parsed
		m.Layers = append([]ocispec.Descriptor(nil), m.Layers...)
		m.Layers[0].URLs, m.Layers[0].MediaType = []string{trap.URL + "/layer"}, mt
		body, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		srv := serve(t)
		srv.Put("img", "v1", built)
		srv.PutManifest("img", "v2", ocispec.MediaTypeImageManifest, body)
		s := open(t, config(t, t.TempDir()))
		if _, err := s.Pull(t.Context(), srv.Host+"/img:v2", &imagestore.Auth{Username: "u", Password: "p"}); err != nil {
			t.Errorf("%s: %v", mt, err)
		}
	}
}

// TestCancelledPullKeepsLayers stops a pull at its last layer; the next one fetches that only.
func TestCancelledPullKeepsLayers(t *testing.T) {
	testns.Root(t)
	built := fourLayers()
	srv := serve(t)
	srv.Put("img", "v1", built)
	ctx, cancel := context.WithCancel(t.Context())
	var blobs atomic.Int64
	srv.Intercept(func(_ http.ResponseWriter, r *http.Request) bool {
		if isBlob(r) && blobs.Add(1) == 5 { // the configuration and three layers came
			cancel()
			<-r.Context().Done()
			return true
		}
		return false
	})
	cfg := config(t, t.TempDir())
	cfg.ConcurrentLayers = 1
	s := open(t, cfg)
	if _, err := s.Pull(ctx, srv.Host+"/img:v1", nil); !errors.Is(err, context.Canceled) {
		t.Fatalf("%v", err)
	}
	pull(t, s, srv.Host+"/img:v1")
	asked := map[string]int{}
	for _, r := range srv.Requests() {
		asked[filepath.Base(r)]++
	}
	twice := 0
	for _, l := range built.Parsed.Layers {
		if asked[l.Digest.String()] > 1 {
			twice++
		}
	}
	if twice != 1 {
		t.Errorf("%d layers were fetched again, want the one that was cut off: %v", twice, asked)
	}
}

// TestDeadlineTellsItsStage: a registry that answers no more at some place; the caller's time runs out there.
func TestDeadlineTellsItsStage(t *testing.T) {
	testns.Root(t)
	built := fourLayers()
	layer := built.Parsed.Layers[2].Digest.String()
	for name, tt := range map[string]struct{ at, want string }{
		"manifest": {"/manifests/v1", `still at stage "manifest" after `},
		"config":   {built.Parsed.Config.Digest.String(), `still at stage "config" after `},
		"layer":    {layer, `still at stage "layer 3 of 4, ` + layer + `: open`},
	} {
		t.Run(name, func(t *testing.T) {
			srv := serve(t)
			srv.Put("img", "v1", built)
			var stalled atomic.Bool
			stalled.Store(true)
			srv.Intercept(func(_ http.ResponseWriter, r *http.Request) bool {
				if stalled.Load() && strings.HasSuffix(r.URL.Path, tt.at) {
					<-r.Context().Done()
					return true
				}
				return false
			})
			s := open(t, config(t, t.TempDir()))
			ctx, cancel := context.WithTimeout(t.Context(), testns.Patience(2*time.Second))
			defer cancel()
			if _, err := s.Pull(ctx, srv.Host+"/img:v1", nil); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %s", err, tt.want)
			}
			stalled.Store(false)
			pull(t, s, srv.Host+"/img:v1")
		})
	}
}
