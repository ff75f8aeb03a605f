package imagestore_test

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore/imagetest"
)

// random content doesn't compress, so that a blob is longer than any buffer between it and us.
func random(n int) imagetest.File {
	b := make([]byte, n)
	x := uint32(2463534242)
	for i := range b {
		x ^= x << 13
		x ^= x >> 17
		x ^= x << 5
		b[i] = byte(x)
	}
	return imagetest.File{Content: b}
}

func oneLayer() imagetest.Image {
	return imagetest.Image{Layers: []imagetest.Layer{imagetest.Files(map[string]imagetest.File{"f": random(3 << 20)})}}
}

// clean checks that a failed pull left nothing that counts.
func clean(t *testing.T, s *imagestore.Disk, root string) {
	t.Helper()
	if n := len(s.List()); n != 0 {
		t.Errorf("%d images are listed", n)
	}
	for _, dir := range []string{"ingest", "trash"} {
		end := time.Now().Add(5 * time.Second) // snapshots are removed in the background
		for {
			names, _ := os.ReadDir(filepath.Join(root, dir))
			if len(names) == 0 {
				break
			}
			if time.Now().After(end) {
				t.Errorf("%s holds %v", dir, names)
				break
			}
			time.Sleep(time.Millisecond)
		}
	}
	checkUsage(t, s, root)
}

// TestRedirectKeepsSecrets pulls blobs from a host that the registry redirects to.
func TestRedirectKeepsSecrets(t *testing.T) {
	testns.Root(t)
	built := oneLayer().Build()
	var leaked atomic.Bool
	blobs := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" || r.Header.Get("X-Secret") != "" {
			leaked.Store(true)
		}
		_, _ = w.Write(built.Blobs[digest.Digest(filepath.Base(r.URL.Path))])
	}))
	defer blobs.Close()
	srv := serve(t)
	srv.Put("test/img", "v1", built)
	srv.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
		if user, pw, ok := r.BasicAuth(); !ok || user != "u" || pw != "p" || r.Header.Get("X-Secret") != "s" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		if strings.Contains(r.URL.Path, "/blobs/") {
			http.Redirect(w, r, blobs.URL+r.URL.Path, http.StatusTemporaryRedirect)
			return true
		}
		return false
	})
	cfg := config(t, t.TempDir())
	hosts(t, cfg, srv.Host, "[header]\nX-Secret = \"s\"\n")
	s := open(t, cfg)
	if _, err := s.Pull(t.Context(), srv.Host+"/test/img:v1", &imagestore.Auth{Username: "u", Password: "p"}); err != nil {
		t.Fatal(err)
	}
	if leaked.Load() {
		t.Error("a secret followed the redirect")
	}
	for name, auth := range map[string]*imagestore.Auth{
		"none": nil, "wrong": {Username: "u", Password: "x"}, "for another": {Username: "u", Password: "p", ServerAddress: "other.example"},
	} {
		if _, err := s.Pull(t.Context(), srv.Host+"/test/img:v1", auth); !errdefs.IsPermissionDenied(err) {
			t.Errorf("%s: a present image was pulled without proof of access: %v", name, err)
		}
	}
	if _, err := s.Pull(t.Context(), srv.Host+"/test/img:v1", &imagestore.Auth{Auth: "dTpw"}); err != nil {
		t.Errorf("base64: %v", err)
	}
}

// hosts writes a hosts.toml for a registry.
func hosts(t testing.TB, cfg imagestore.Config, host, content string) {
	t.Helper()
	dir := filepath.Join(cfg.Registry.CertsDirs[0], host)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestBearerToken(t *testing.T) {
	testns.Root(t)
	built := oneLayer().Build()
	srv := serve(t)
	srv.Put("test/img", "v1", built)
	tokens := http.NewServeMux()
	give := func(w http.ResponseWriter, ok bool) {
		if !ok {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_, _ = w.Write([]byte(`{"token":"good","expires_in":300}`))
	}
	tokens.HandleFunc("GET /token", func(w http.ResponseWriter, r *http.Request) {
		user, pw, _ := r.BasicAuth()
		give(w, user == "u" && pw == "p" && r.URL.Query().Get("scope") == "repository:test/img:pull" && r.URL.Query().Get("service") == "svc")
	})
	tokens.HandleFunc("POST /token", func(w http.ResponseWriter, r *http.Request) {
		give(w, r.FormValue("grant_type") == "refresh_token" && r.FormValue("refresh_token") == "id")
	})
	ts := httptest.NewServer(tokens)
	defer ts.Close()
	srv.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
		if a := r.Header.Get("Authorization"); a == "Bearer good" || a == "Bearer direct" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+ts.URL+`/token",service="svc",scope="repository:test/img:pull"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	s := open(t, config(t, t.TempDir()))
	for name, c := range map[string]struct {
		auth *imagestore.Auth
		ok   bool
	}{
		"user and password": {&imagestore.Auth{Username: "u", Password: "p"}, true},
		"identity token":    {&imagestore.Auth{IdentityToken: "id"}, true},
		"registry token":    {&imagestore.Auth{RegistryToken: "direct"}, true},
		"anonymous":         {nil, false},
		"wrong password":    {&imagestore.Auth{Username: "u", Password: "x"}, false},
		"wrong identity":    {&imagestore.Auth{IdentityToken: "x"}, false},
		"wrong token":       {&imagestore.Auth{RegistryToken: "x"}, false},
		"broken base64":     {&imagestore.Auth{Auth: "%%%"}, false},
	} {
		_, err := s.Pull(t.Context(), srv.Host+"/test/img:v1", c.auth)
		if c.ok && err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if !c.ok && !errdefs.IsPermissionDenied(err) && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil && (strings.Contains(err.Error(), "Basic ") || strings.Contains(err.Error(), "dTp4")) {
			t.Errorf("%s: the error holds a secret: %v", name, err)
		}
	}
}

func TestMirrors(t *testing.T) {
	testns.Root(t)
	built := oneLayer().Build()
	layer := built.Parsed.Layers[0].Digest
	good, bad, lying := serve(t), serve(t), serve(t)
	good.Put("pre/docker/library/img", "v1", built)
	lying.Put("library/img", "v1", built)
	lying.PutBlob("library/img", layer, bytes.Repeat([]byte{0x1f}, len(built.Blobs[layer])))
	bad.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") != "" || r.URL.Query().Get("ns") != "docker.io" {
			t.Errorf("mirror got %s with Authorization %q", r.URL, r.Header.Get("Authorization"))
		}
		w.WriteHeader(http.StatusBadGateway)
		return true
	})
	cfg := config(t, t.TempDir())
	s := open(t, cfg)
	toml := func(server string, mirrors ...string) {
		text := "server = \"http://" + server + "\"\n"
		for _, m := range mirrors {
			text += "[host.\"http://" + m + "\"]\n"
			if strings.Contains(m, "/") {
				text += "override_path = true\n"
			}
		}
		hosts(t, cfg, "docker.io", text)
	}
	// Each configuration counts from the next pull on.
	toml("127.0.0.1:1", bad.Host, lying.Host, good.Host+"/v2/pre/docker")
	img, err := s.Pull(t.Context(), "img:v1", &imagestore.Auth{Username: "u", Password: "p"})
	if err != nil {
		t.Fatal(err)
	}
	if want := "docker.io/library/img:v1"; len(img.RepoTags) != 1 || img.RepoTags[0] != want {
		t.Errorf("tags %v, want %s", img.RepoTags, want)
	}
	toml("127.0.0.1:1", bad.Host)
	_, err = s.Pull(t.Context(), "img:v1", nil)
	if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), bad.Host) || !strings.Contains(err.Error(), "127.0.0.1:1") {
		t.Errorf("the error must name each hop: %v", err)
	}
	hosts(t, cfg, "docker.io", "server = ")
	if _, err = s.Pull(t.Context(), "img:v1", nil); !errdefs.IsInvalidArgument(err) {
		t.Errorf("broken hosts.toml: %v", err)
	}
}
