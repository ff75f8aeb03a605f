package imagestore_test

import (
	"bytes"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore/imagetest"
)

// reference starts the reference registry, Debian's docker-registry. auth is the rest of its configuration. It returns its address.
func reference(t *testing.T, auth string) (host string) {
	t.Helper()
	bin, err := exec.LookPath("docker-registry")
	if err != nil {
		t.Skip("docker-registry is not there (make assets fetches it)")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host = l.Addr().String()
	_ = l.Close()
	dir := t.TempDir()
	conf := filepath.Join(dir, "config.yml")
	text := "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: " + dir + "/data\nhttp:\n  addr: " + host + "\n" + auth
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c := exec.Command(bin, "serve", conf)
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
		if t.Failed() {
			t.Log(out.String())
		}
	})
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); {
		if resp, err := http.Get("http://" + host + "/v2/"); err == nil {
			_ = resp.Body.Close()
			return host
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatal("docker-registry doesn't answer")
	return ""
}

// TestReferenceClient pulls from the reference registry with a password, over a proxy that breaks each transfer off half way: the
// client goes on where it was, by a ranged read.
func TestReferenceClient(t *testing.T) {
	testns.Root(t)
	passwords := filepath.Join(t.TempDir(), "htpasswd")
	// The password is "p".
	if err := os.WriteFile(passwords, []byte("u:$2a$04$lAFnHu/MZ6A93wHhFFeqgO95VpMA8aqM74r9BGE4XS6/psWsxTFSq\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	host := reference(t, "auth:\n  htpasswd:\n    realm: test\n    path: "+passwords+"\n")
	var whole, ranged atomic.Int64
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		req := r.Clone(r.Context())
		req.URL.Scheme, req.URL.Host, req.RequestURI = "http", host, ""
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Error(err)
			return
		}
		defer resp.Body.Close()
		maps.Copy(w.Header(), resp.Header)
		w.WriteHeader(resp.StatusCode)
		if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, "/blobs/") || resp.ContentLength < 10_000 {
			_, _ = io.Copy(w, resp.Body)
			return
		}
		if resp.StatusCode == http.StatusPartialContent {
			ranged.Add(1)
			_, _ = io.Copy(w, resp.Body)
			return
		}
		whole.Add(1)
		_, _ = io.CopyN(w, resp.Body, resp.ContentLength/2)
		panic(http.ErrAbortHandler)
	}))
	defer proxy.Close()
	at := strings.TrimPrefix(proxy.URL, "http://")
	built := fourLayers()
	cfg := config(t, t.TempDir())
	s := open(t, cfg)
	name := map[string]string{"io.containerd.image.name": at + "/test/img:v1"}
	if _, err := s.Import(t.Context(), bytes.NewReader(layout(t, built, name))); err != nil {
		t.Fatal(err)
	}
	good := &imagestore.Auth{Username: "u", Password: "p"}
	if err := s.Push(t.Context(), at+"/test/img:v1", nil); !errdefs.IsPermissionDenied(err) {
		t.Errorf("push without a password: %v", err)
	}
	if err := s.Push(t.Context(), at+"/test/img:v1", good); err != nil {
		t.Fatal(err)
	}
	if err := s.Remove(t.Context(), built.ID.String()); err != nil {
		t.Fatal(err)
	}
	for name, auth := range map[string]*imagestore.Auth{"none": nil, "wrong": {Username: "u", Password: "x"}} {
		if _, err := s.Pull(t.Context(), at+"/test/img:v1", auth); !errdefs.IsPermissionDenied(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := s.Pull(t.Context(), at+"/test/img:v1", good); err != nil {
		t.Fatal(err)
	}
	if whole.Load() != 4 || ranged.Load() != 4 {
		t.Errorf("%d whole and %d ranged reads for four layers", whole.Load(), ranged.Load())
	}
}

// TestDistribution pulls from the reference registry.
func TestDistribution(t *testing.T) {
	testns.Root(t)
	host := reference(t, "")
	arm := small("arm")
	arm.Platform.OS, arm.Platform.Architecture = "linux", "arm64"
	docker, zstd := threeLayers(), threeLayers()
	docker.Docker, zstd.Compression = true, imagetest.Zstd
	id := threeLayers().Build().ID.String()
	cfg := config(t, t.TempDir())
	s := open(t, cfg)
	for name, b := range map[string]imagetest.Built{"oci": threeLayers().Build(), "docker": docker.Build(), "zstd": zstd.Build(), "index": imagetest.Index(arm, threeLayers())} {
		if err := b.Push(t.Context(), "http://"+host, "test/"+name, "v1"); err != nil {
			t.Fatal(name, err)
		}
		for _, ref := range []string{":v1", "@" + b.Manifest.Digest.String()} {
			img := pull(t, s, host+"/test/"+name+ref)
			if img.ID != id {
				t.Errorf("%s%s: ID %s, want %s", name, ref, img.ID, id)
			}
			checkTree(t, s, img.ID)
		}
		if err := s.Remove(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	if u := s.Usage(); u.Bytes != 0 {
		t.Errorf("left: %+v", u)
	}
}
