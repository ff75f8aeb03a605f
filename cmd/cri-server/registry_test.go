package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/seed-9a14075a/cri-server/pkg/imagestore/imagetest"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore/registry"
)

// TestRegistryTest asks for a registry with a mirror that is down and a password from a file, configured by hosts.toml and, for
// another name, by k3s's registries.yaml.
func TestRegistryTest(t *testing.T) {
	srv, err := imagetest.Serve("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer srv.Close()
	srv.Put("team/app", "v1", imagetest.Image{Layers: []imagetest.Layer{imagetest.Files(map[string]imagetest.File{"f": {Content: []byte("x")}})}}.Build())
	srv.Intercept(func(w http.ResponseWriter, r *http.Request) bool {
		if user, password, _ := r.BasicAuth(); user == "u" && password == "p" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	dir := t.TempDir()
	write := func(name, text string) string {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	write("certs.d/registry.example/hosts.toml", fmt.Sprintf("server = \"http://%s\"\n[host.\"http://127.0.0.1:1\"]\n", srv.Host))
	yaml := write("registries.yaml", fmt.Sprintf("mirrors:\n  k3s.example:\n    endpoint: [\"http://%s\"]\nconfigs:\n  %q:\n    auth: {username: u, password: p}\n", srv.Host, srv.Host))
	auth := write("auth.json", `{"auths":{"registry.example":{"username":"u","password":"p"}}}`)
	config := write("config.toml", fmt.Sprintf("[image]\ncerts_dir = %q\nregistries_files = [%q]\nauth_files = [%q]\n", filepath.Join(dir, "certs.d"), yaml, auth))
	run := func(args ...string) (string, error) {
		return runCommand(t, newRoot(), nil, append([]string{"registry", "test", "--config", config}, args...)...)
	}
	out, err := run("registry.example/team/app:v1")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"1. mirror", "http://127.0.0.1:1", "NO", "refused", "2. registry", srv.Host, "Basic realm", auth, "has credentials", "USED", "hosts.toml", "application/vnd.oci.image.manifest.v1+json"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if strings.Contains(out, "dTpw") {
		t.Errorf("the password shows:\n%s", out)
	}
	if out, err = run("k3s.example/team/app:v1", "-o", "json"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var probes []registry.Probe
	if err := json.Unmarshal([]byte(out), &probes); err != nil || len(probes) != 2 || probes[0].From != yaml || probes[0].Error != "" {
		t.Errorf("%v %+v", err, probes)
	}
	for _, bad := range []string{"registry.example/team/none:v1", "127.0.0.1:1", "UPPER/..", ""} {
		if out, err := run(bad); err == nil {
			t.Errorf("%q: no error:\n%s", bad, out)
		}
	}
}
