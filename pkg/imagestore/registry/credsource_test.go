package registry

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/distribution/reference"
)

// helper puts a credential helper into PATH that answers with a script.
func helper(t *testing.T, name, script string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-"+name), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

func TestLookup(t *testing.T) {
	helper(t, "good", `read server; printf '{"Username":"helped","Secret":"%s"}' "$server"`)
	helper(t, "token", `printf '{"Username":"<token>","Secret":"identity"}'`)
	helper(t, "empty", `echo "credentials not found in native keychain"; exit 1`)
	helper(t, "broken", `echo "secret leaks" >&2; exit 3`)
	for name, c := range map[string]struct {
		config, host, repo string
		want               Credentials
		said               string
	}{
		"auths":        {`{"auths":{"r.example":{"auth":"dTpw"}}}`, "r.example", "a/b", Credentials{Auth: "dTpw"}, `entry "r.example" has credentials`},
		"docker hub":   {`{"auths":{"https://index.docker.io/v1/":{"auth":"dTpw"}}}`, "docker.io", "library/x", Credentials{Auth: "dTpw"}, "has credentials"},
		"path":         {`{"auths":{"r.example":{"auth":"b"},"r.example/team":{"auth":"a"},"r.example/te":{"auth":"c"}}}`, "r.example", "team/x", Credentials{Auth: "a"}, "r.example/team"},
		"other host":   {`{"auths":{"r.example":{"auth":"b"}}}`, "r.example:5000", "x", Credentials{}, "no entry for r.example:5000"},
		"no part":      {`{"auths":{"r.example.evil":{"auth":"b"}}}`, "r.example", "x", Credentials{}, "no entry"},
		"tokens":       {`{"auths":{"r.example":{"identitytoken":"i","registrytoken":"r"}}}`, "r.example", "x", Credentials{IdentityToken: "i", RegistryToken: "r"}, "has credentials"},
		"helper":       {`{"credHelpers":{"r.example":"good"},"auths":{"r.example":{"auth":"b"}}}`, "r.example", "x", Credentials{Username: "helped", Password: "r.example"}, "credential helper good has"},
		"store":        {`{"credsStore":"good"}`, "docker.io", "x", Credentials{Username: "helped", Password: "https://index.docker.io/v1/"}, "good"},
		"token helper": {`{"credsStore":"token"}`, "r.example", "x", Credentials{IdentityToken: "identity"}, "token"},
		"empty helper": {`{"credsStore":"empty","auths":{"r.example":{"auth":"b"}}}`, "r.example", "x", Credentials{Auth: "b"}, "credential helper empty: has none for r.example"},
		"broken":       {`{"credsStore":"broken"}`, "r.example", "x", Credentials{}, "credential helper broken: failed"},
		"not there":    {`{"credsStore":"absent"}`, "r.example", "x", Credentials{}, "docker-credential-absent is not installed"},
		"bad name":     {`{"credsStore":"../../bin/sh"}`, "r.example", "x", Credentials{}, "bad name"},
		"bad file":     {`{"auths":`, "r.example", "x", Credentials{}, "unexpected end of JSON"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "config.json")
			if err := os.WriteFile(file, []byte(c.config), 0o600); err != nil {
				t.Fatal(err)
			}
			got, trail := lookup(t.Context(), []string{file + ".none", file}, c.host, c.repo)
			said := strings.Join(trail, "\n")
			if got != c.want || !strings.Contains(said, c.said) || !strings.Contains(said, "not there") {
				t.Errorf("%+v\n%s", got, said)
			}
			if strings.Contains(said, "leaks") {
				t.Errorf("a helper's output shows: %s", said)
			}
		})
	}
}

func TestRegistriesYAML(t *testing.T) {
	const text = `
mirrors:
  docker.io:
    endpoint: ["https://mirror.example:5000", "http://two.example/v2/hub"]
    rewrite: {"^library/(.*)": "hub/$1"}
  r.local:
    endpoint: ["http://r.local"]
  "*":
    endpoint: ["https://all.example"]
configs:
  "mirror.example:5000":
    auth: {username: u, password: p}
    tls: {ca_file: /ca.pem, cert_file: /c.pem, key_file: /k.pem}
  r.local:
    tls: {insecure_skip_verify: true}
`
	for host, want := range map[string]string{
		"docker.io": "https://mirror.example:5000/v2 server=false ca=[/ca.pem] client=[[/c.pem /k.pem]] skip=false user=u name=hub/x\n" +
			"http://two.example/v2/hub/v2 server=false ca=[] client=[] skip=false user= name=hub/x\n" +
			"https://registry-1.docker.io/v2 server=true ca=[] client=[] skip=false user= name=library/x\n",
		"r.local": "http://r.local/v2 server=true ca=[] client=[] skip=true user= name=library/x\n",
		"quay.io": "https://all.example/v2 server=false ca=[] client=[] skip=false user= name=library/x\n" +
			"https://quay.io/v2 server=true ca=[] client=[] skip=false user= name=library/x\n",
	} {
		hosts, err := parseRegistries([]byte(text), host)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		for _, h := range hosts {
			got += fmt.Sprintf("%s://%s%s server=%v ca=%v client=%v skip=%v user=%s name=%s\n", h.Scheme, h.Address, h.Path, h.Server, h.CA, h.Client, h.SkipVerify, h.own.Username, h.repositoryOn("library/x"))
		}
		if got != want {
			t.Errorf("%s:\n%swant\n%s", host, got, want)
		}
	}
	if hosts, err := parseRegistries([]byte("mirrors: {a: {endpoint: [x]}}"), "b"); err != nil || hosts != nil {
		t.Errorf("a host it says nothing of: %v, %v", hosts, err)
	}
	for _, bad := range []string{"mirrors: 1", "mirrors: {b: {endpoint: ['ftp://x']}}", "mirrors: {b: {rewrite: {'(': x}}}", "\t"} {
		if _, err := parseRegistries([]byte(bad), "b"); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

func TestProbe(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if u, p, _ := r.BasicAuth(); u != "u" || p != "p" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if strings.Contains(r.URL.Path, "/manifests/v1") {
			w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
			return
		}
		http.NotFound(w, r)
	}))
	defer srv.Close()
	addr := strings.TrimPrefix(srv.URL, "http://")
	dir := t.TempDir()
	auth := filepath.Join(dir, "auth.json")
	if err := os.WriteFile(auth, []byte(`{"auths":{"`+addr+`":{"username":"u","password":"p"}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	hosts := filepath.Join(dir, "certs.d", "r.example")
	if err := os.MkdirAll(hosts, 0o755); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("server = %q\n[host.'http://127.0.0.1:1']\n[host.%q]\ncapabilities = ['pull']\n", srv.URL+"/other", srv.URL)
	if err := os.WriteFile(filepath.Join(hosts, "hosts.toml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c := New(Config{CertsDirs: []string{filepath.Join(dir, "certs.d")}, AuthFiles: []string{auth}})
	defer c.Close()
	ref, err := reference.ParseNormalizedNamed("r.example/app:v1")
	if err != nil {
		t.Fatal(err)
	}
	got, err := c.Probe(t.Context(), ref, Credentials{}, true)
	if err != nil || len(got) != 3 {
		t.Fatalf("%+v, %v", got, err)
	}
	for i, want := range []struct{ role, ping, credentials, err string }{
		{"mirror", "", "", "connection refused"},
		{"mirror", "401 Unauthorized", "has credentials", "may not resolve tags"},
		{"registry", "401 Unauthorized", "no entry for r.example", "credentials needed"},
	} {
		p := got[i]
		if p.Role != want.role || p.Ping != want.ping || !strings.Contains(p.Error, want.err) || !strings.Contains(strings.Join(p.Credentials, "\n"), want.credentials) || p.From == "" {
			t.Errorf("%d: %+v", i, p)
		}
	}
	given := Credentials{Username: "u", Password: "p"}
	if got, err = c.Probe(t.Context(), ref, given, true); err != nil || got[2].Error != "" || !strings.Contains(got[2].Image, "manifest.v1+json") {
		t.Errorf("%+v, %v", got, err)
	}
}
