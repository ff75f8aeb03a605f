package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// assets are small stand-ins for what fetch-busybox leaves.
func assets() *Assets {
	return &Assets{busybox: []byte("busybox"), applets: []string{"sh", "ls"}, testbox: []byte("testbox"), platform: platform{"amd64", "linux"},
		libs: []File{{Path: "lib/libc.so.6", Mode: 0o755, Body: []byte("libc")}}}
}

func get(t *testing.T, url, auth string) (*http.Response, []byte, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
	defer cancel()
	q, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	if auth != "" {
		q.Header.Set("Authorization", auth)
	}
	r, err := http.DefaultClient.Do(q)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	return r, b, err
}

func TestRegistry(t *testing.T) {
	r, err := Catalog(assets(), false)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(r)
	defer s.Close()
	answer, body, err := get(t, s.URL+"/v2/e2e-test-images/busybox/manifests/1.29-2", "")
	if err != nil || answer.StatusCode != 200 || digest.FromBytes(body).String() != answer.Header.Get("Docker-Content-Digest") {
		t.Fatalf("%v %v\n%s", err, answer, body)
	}
	var m manifest
	if err := json.Unmarshal(body, &m); err != nil {
		t.Fatal(err)
	}
	_, blob, err := get(t, s.URL+"/v2/e2e-test-images/busybox/blobs/"+m.Layers[0].Digest.String(), "")
	if err != nil || digest.FromBytes(blob) != m.Layers[0].Digest {
		t.Errorf("layer: %v", err)
	}
	if _, b, err := get(t, s.URL+"/v2/corrupt/busybox/blobs/"+m.Layers[0].Digest.String(), ""); err != nil || len(b) != len(blob) || digest.FromBytes(b) == m.Layers[0].Digest {
		t.Errorf("corrupt layer: %v, %d bytes", err, len(b))
	}
	if _, b, err := get(t, s.URL+"/v2/stall/busybox/blobs/"+m.Layers[0].Digest.String(), ""); !errors.Is(err, context.DeadlineExceeded) || len(b) != len(blob)/2 {
		t.Errorf("stalling layer: %v, %d bytes", err, len(b))
	}
	for url, status := range map[string]int{
		"/v2/": 200, "/v2/no/such/manifests/1": 404, "/v2/a/blobs/sha256:0": 404, "/v2/private/busybox/manifests/1": 401, "/token": 401,
		"/v2/e2e-test-images/busybox/manifests/" + digest.FromBytes(body).String(): 200,
	} {
		if answer, _, err := get(t, s.URL+url, ""); err != nil || answer.StatusCode != status {
			t.Errorf("%s: %v %d, want %d", url, err, answer.StatusCode, status)
		}
	}
	if answer, _, err := get(t, s.URL+"/v2/private/busybox/manifests/1", "Bearer "+token); err != nil || answer.StatusCode != 200 {
		t.Errorf("with a token: %v %v", err, answer)
	}
}

// Equal ingredients give equal digests, and a hard link comes after its file.
func TestLayers(t *testing.T) {
	var ids []digest.Digest
	for range 2 {
		l, err := NewLayer(assets().base(), false)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, digest.FromBytes(l.body))
		seen := map[string]bool{}
		z, err := gzip.NewReader(bytes.NewReader(l.body))
		if err != nil {
			t.Fatal(err)
		}
		for r := tar.NewReader(z); ; {
			h, err := r.Next()
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if h.Typeflag == tar.TypeLink && !seen[h.Linkname] {
				t.Errorf("%s comes before %s", h.Name, h.Linkname)
			}
			seen[h.Name] = true
		}
		if !seen["bin/ls"] || !seen["bin/"] || !seen["etc/passwd"] {
			t.Errorf("entries: %v", seen)
		}
	}
	if ids[0] != ids[1] {
		t.Errorf("digests differ: %v", ids)
	}
}
