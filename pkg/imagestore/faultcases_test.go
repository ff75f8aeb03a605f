package imagestore_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore/imagetest"
)

// fault answers a request in the registry's place; n counts the requests for the layer's blob.
type fault func(w http.ResponseWriter, r *http.Request, n int64) bool

type faultCase struct {
	fault fault
	want  error // nil: the pull succeeds
	text  string
}

// faulty is an image whose registry misbehaves.
type faulty struct {
	built imagetest.Built
	layer digest.Digest
	blob  []byte
}

func newFaulty() faulty {
	built := oneLayer().Build()
	layer := built.Parsed.Layers[0].Digest
	return faulty{built, layer, built.Blobs[layer]}
}

func (f faulty) isBlob(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, f.layer.String()) }

func isManifest(r *http.Request) bool { return strings.Contains(r.URL.Path, "/manifests/") }

func status(code int) fault {
	return func(w http.ResponseWriter, r *http.Request, _ int64) bool {
		if isManifest(r) {
			w.WriteHeader(code)
		}
		return isManifest(r)
	}
}

func (f faulty) send(b []byte) fault {
	return func(w http.ResponseWriter, r *http.Request, _ int64) bool {
		if f.isBlob(r) {
			_, _ = w.Write(b)
		}
		return f.isBlob(r)
	}
}

func (f faulty) answers() map[string]faultCase {
	isBlob := f.isBlob
	return map[string]faultCase{
		"none":                {fault: func(http.ResponseWriter, *http.Request, int64) bool { return false }},
		"401 without a realm": {fault: status(401), want: errdefs.ErrPermissionDenied, text: "credentials needed"},
		"403":                 {fault: status(403), want: errdefs.ErrPermissionDenied, text: "status 403"},
		"404":                 {fault: status(404), want: errdefs.ErrNotFound, text: "resolve test/img"},
		"500 for good":        {fault: status(500), want: errdefs.ErrUnavailable, text: "status 500"},
		"429 for good":        {fault: status(429), want: errdefs.ErrUnavailable, text: "rate limit"},
		"503 once": {fault: func(w http.ResponseWriter, r *http.Request, n int64) bool {
			if isBlob(r) && n == 1 {
				w.WriteHeader(503)
				return true
			}
			return false
		}},
		"429 once with Retry-After": {fault: func(w http.ResponseWriter, r *http.Request, n int64) bool {
			if isBlob(r) && n == 1 {
				w.Header().Set("Retry-After", "0")
				w.WriteHeader(429)
				return true
			}
			return false
		}},
	}
}

func (f faulty) contents() map[string]faultCase {
	isBlob, send, blob, built := f.isBlob, f.send, f.blob, f.built
	wrong := bytes.Clone(blob)
	wrong[len(wrong)/2] ^= 1
	return map[string]faultCase{
		"wrong content": {fault: send(wrong), want: errdefs.ErrDataLoss, text: "digest is sha256:"},
		"shorter blob":  {fault: send(blob[:1000]), want: errdefs.ErrDataLoss, text: "1000 bytes to send"},
		"longer blob":   {fault: send(append(bytes.Clone(blob), 'x')), want: errdefs.ErrDataLoss, text: "longer than"},
		"no gzip":       {fault: send(bytes.Repeat([]byte("x"), len(blob))), want: errdefs.ErrDataLoss},
		"longer, chunked": {want: errdefs.ErrDataLoss, text: "longer than", fault: func(w http.ResponseWriter, r *http.Request, _ int64) bool {
			if !isBlob(r) {
				return false
			}
			_, _ = w.Write(blob)
			w.(http.Flusher).Flush()
			_, _ = w.Write([]byte("more"))
			return true
		}},
		"broken off, ranges": {fault: func(w http.ResponseWriter, r *http.Request, n int64) bool {
			if isBlob(r) && n <= 2 && r.Header.Get("Range") == "" {
				w.Header().Set("Content-Length", fmt.Sprint(len(blob)))
				_, _ = w.Write(blob[:len(blob)/2])
				panic(http.ErrAbortHandler)
			}
			return false
		}},
		"broken off, no ranges": {fault: func(w http.ResponseWriter, r *http.Request, n int64) bool {
			if !isBlob(r) {
				return false
			}
			w.Header().Set("Content-Length", fmt.Sprint(len(blob)))
			if n == 1 {
				_, _ = w.Write(blob[:len(blob)/2])
				panic(http.ErrAbortHandler)
			}
			_, _ = w.Write(blob)
			return true
		}},
		"broken off each time": {want: errdefs.ErrUnavailable, fault: func(w http.ResponseWriter, r *http.Request, _ int64) bool {
			if isBlob(r) {
				panic(http.ErrAbortHandler)
			}
			return false
		}},
		"stalls": {want: errdefs.ErrUnavailable, text: "stalled", fault: func(w http.ResponseWriter, r *http.Request, n int64) bool {
			if !isBlob(r) {
				return false
			}
			if r.Header.Get("Range") == "" {
				w.Header().Set("Content-Length", fmt.Sprint(len(blob)))
				_, _ = w.Write(blob[:1000])
				w.(http.Flusher).Flush()
			}
			<-r.Context().Done()
			return true
		}},
		"wrong manifest digest": {want: errdefs.ErrDataLoss, text: "instead of", fault: func(w http.ResponseWriter, r *http.Request, _ int64) bool {
			if isManifest(r) {
				w.Header().Set("Docker-Content-Digest", digest.FromString("x").String())
				w.Header().Set("Content-Type", built.Manifest.MediaType)
				_, _ = w.Write(built.Blobs[built.Manifest.Digest])
			}
			return isManifest(r)
		}},
		"endless manifest": {want: errdefs.ErrResourceExhausted, fault: func(w http.ResponseWriter, r *http.Request, _ int64) bool {
			if isManifest(r) {
				for range 6 << 10 {
					_, _ = w.Write(make([]byte, 1<<10))
				}
			}
			return isManifest(r)
		}},
		"redirect loop": {want: errdefs.ErrUnavailable, text: "redirects", fault: func(w http.ResponseWriter, r *http.Request, _ int64) bool {
			http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
			return true
		}},
	}
}

func TestRegistryFaults(t *testing.T) {
	testns.Root(t)
	f := newFaulty()
	built, isBlob := f.built, f.isBlob
	cases := f.answers()
	maps.Copy(cases, f.contents())
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			srv := serve(t)
			srv.Put("test/img", "v1", built)
			var n atomic.Int64
			srv.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
				k := int64(0)
				if isBlob(r) {
					k = n.Add(1)
				}
				return c.fault(w, r, k)
			})
			cfg := config(t, t.TempDir())
			cfg.Registry.StallTimeout = 200 * time.Millisecond
			s := open(t, cfg)
			got, err := s.Pull(t.Context(), srv.Host+"/test/img:v1", nil)
			if c.want == nil {
				if err != nil {
					t.Fatal(err)
				}
				if got.ID != built.ID.String() {
					t.Errorf("ID %s", got.ID)
				}
				return
			}
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), srv.Host) || !strings.Contains(err.Error(), c.text) {
				t.Errorf("error %v, want %v with %q", err, c.want, c.text)
			}
			clean(t, s, cfg.Root)
		})
	}
}
