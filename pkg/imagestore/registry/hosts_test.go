package registry

import (
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestParseHosts(t *testing.T) {
	for name, c := range map[string]struct {
		host, toml string
		want       []Host
	}{
		"empty file": {"docker.io", "", []Host{{Scheme: "https", Address: "registry-1.docker.io", Path: "/v2", Pull: true, Resolve: true, Server: true}}},
		"order of the file": {
			"docker.io", `server = "https://registry-1.docker.io"
[host."http://b:5000"]
  capabilities = ["pull", "resolve"]
[host."https://a.example"]
  capabilities = ["pull"]
  [host."https://a.example".header]
    X-One = "1"
    x-two = ["2", "3"]
[host."c:443"]
`,
			[]Host{
				{Scheme: "http", Address: "b:5000", Path: "/v2", Pull: true, Resolve: true},
				{Scheme: "https", Address: "a.example", Path: "/v2", Pull: true, Header: http.Header{"X-One": {"1"}, "X-Two": {"2", "3"}}},
				{Scheme: "https", Address: "c:443", Path: "/v2", Pull: true, Resolve: true},
				{Scheme: "https", Address: "registry-1.docker.io", Path: "/v2", Pull: true, Resolve: true, Server: true},
			},
		},
		"paths": {
			"r.example", `server = "https://up.example/v2/proxy/"
[host."https://one/v2/x/../y"]
[host."https://two/v2/x"]
override_path = true
[host."https://three"]
override_path = true
`,
			[]Host{
				{Scheme: "https", Address: "one", Path: "/v2/y/v2", Pull: true, Resolve: true},
				{Scheme: "https", Address: "two", Path: "/v2/x", Pull: true, Resolve: true},
				{Scheme: "https", Address: "three", Path: "", Pull: true, Resolve: true},
				{Scheme: "https", Address: "up.example", Path: "/v2/proxy/v2", Pull: true, Resolve: true, Server: true},
			},
		},
		"tls": {
			"r.example", `ca = "ca.crt"
skip_verify = true
dial_timeout = "3s"
[host."https://m"]
ca = ["/abs/a", "b"]
client = [["c.crt", "c.key"], ["d.crt", ""], "e.pem"]
`,
			[]Host{
				{Scheme: "https", Address: "m", Path: "/v2", Pull: true, Resolve: true, CA: []string{"/abs/a", "/d/b"}, Client: [][2]string{{"/d/c.crt", "/d/c.key"}, {"/d/d.crt", ""}, {"/d/e.pem", ""}}},
				{Scheme: "https", Address: "r.example", Path: "/v2", Pull: true, Resolve: true, Server: true, CA: []string{"/d/ca.crt"}, SkipVerify: true, DialTimeout: 3 * time.Second},
			},
		},
		"push only server": {
			"r.example", `capabilities = ["push"]`,
			[]Host{{Scheme: "https", Address: "r.example", Path: "/v2", Server: true}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := ParseHosts([]byte(c.toml), "/d", c.host)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("got\n%+v\nwant\n%+v", got, c.want)
			}
		})
	}
}

func TestParseHostsRefuses(t *testing.T) {
	for _, toml := range []string{
		`server = `, `server = "ftp://x"`, `server = "https://"`, `server = "https://user:pw@x"`, `[host."https://x"]
capabilities = ["fly"]`, `[host."https://x"]
ca = 3`, `[host."https://x"]
client = [["a", "b", "c"]]`, `[host."https://x"]
dial_timeout = "soon"`, `[host."https://x".header]
a = 1`, `host = 3`,
	} {
		if got, err := ParseHosts([]byte(toml), "/d", "r"); err == nil {
			t.Errorf("%q gave %+v", toml, got)
		}
	}
}

func TestLoadHostsDirs(t *testing.T) {
	dir := t.TempDir()
	put := func(name, content string) {
		t.Helper()
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	mirror := func(m string) string { return "[host.\"https://" + m + "\"]\n" }
	put("a.example_5000_/hosts.toml", mirror("one"))
	put("b.example:5000/hosts.toml", mirror("two"))
	put("_default/hosts.toml", mirror("three"))
	put("broken/hosts.toml", "server = ")
	put("certs/ca.crt", "")
	put("certs/c.cert", "")
	put("certs/c.key", "")
	for host, want := range map[string]string{
		"a.example:5000": "one a.example:5000", "b.example:5000": "two b.example:5000", "a.example": "three a.example", "certs": "certs",
	} {
		hosts, err := LoadHosts([]string{dir}, nil, host)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, h := range hosts {
			got = append(got, h.Address)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %v, want %s", host, got, want)
		}
		if host == "certs" && (len(hosts[0].CA) != 1 || len(hosts[0].Client) != 1) {
			t.Errorf("docker's layout: %+v", hosts[0])
		}
	}
	if _, err := LoadHosts([]string{dir}, nil, "broken"); err == nil {
		t.Error("a broken hosts.toml was passed over")
	}
	for host, want := range map[string][3]bool{ // http, skip verify, fallback
		"localhost": {false, true, false}, "localhost:5000": {false, true, true}, "127.9.9.9:80": {true, false, false},
		"[::1]:5000": {false, true, true}, "10.0.0.1:5000": {}, "localhost.example": {}, "r.example:80": {},
	} {
		hosts, err := LoadHosts(nil, nil, host)
		if err != nil || len(hosts) != 1 {
			t.Fatal(hosts, err)
		}
		h := hosts[0]
		if got := [3]bool{h.Scheme == "http", h.SkipVerify, h.FallbackHTTP}; got != want {
			t.Errorf("%s: %v, want %v", host, got, want)
		}
	}
}

func TestCredentialsScope(t *testing.T) {
	server, mirror := Host{Address: "registry-1.docker.io", Server: true}, Host{Address: "mirror.example"}
	for _, c := range []struct {
		name     string
		address  string
		registry string
		host     Host
		want     bool
	}{
		{"no address, server", "", "docker.io", server, true},
		{"no address, mirror", "", "docker.io", mirror, false},
		{"docker's old address", "https://index.docker.io/v1/", "docker.io", server, true},
		{"docker.io", "docker.io", "docker.io", server, true},
		{"other registry", "https://quay.io", "docker.io", server, false},
		{"named mirror", "mirror.example", "docker.io", mirror, true},
		{"named mirror, server", "mirror.example", "docker.io", server, false},
		{"default port", "mirror.example:443", "docker.io", mirror, true},
		{"other port", "mirror.example:444", "docker.io", mirror, false},
		{"subdomain", "example", "docker.io", mirror, false},
	} {
		creds := Credentials{Username: "u", Password: "p", ServerAddress: c.address}
		if got := creds.forHost(c.registry, c.host); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
	if (Credentials{}).forHost("docker.io", server) {
		t.Error("no credentials are sent nowhere")
	}
}

func TestParseChallenge(t *testing.T) {
	for v, want := range map[string]struct {
		scheme string
		params map[string]string
	}{
		`Bearer realm="https://a/b",service="s",scope="repository:x:pull,push"`: {"Bearer", map[string]string{"realm": "https://a/b", "service": "s", "scope": "repository:x:pull,push"}},
		`bearer  realm=https://a , error="q\"uoted"`:                            {"bearer", map[string]string{"realm": "https://a", "error": `q"uoted`}},
		`Basic realm="x"`:            {"Basic", map[string]string{"realm": "x"}},
		`Basic`:                      {"Basic", map[string]string{}},
		``:                           {"", map[string]string{}},
		`Bearer realm="unterminated`: {"Bearer", map[string]string{"realm": "unterminated"}},
	} {
		scheme, params := parseChallenge(v)
		if scheme != want.scheme || !reflect.DeepEqual(params, want.params) {
			t.Errorf("%q: %q %v", v, scheme, params)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	for v, want := range map[string]time.Duration{"": 0, "7": 7 * time.Second, "-1": 0, "x": 0, "999999999": 24 * time.Hour, "Mon, 02 Jan 2006 15:04:05 GMT": 0} {
		if got := retryAfter(v); got != want {
			t.Errorf("%q: %s", v, got)
		}
	}
}

func FuzzParseHosts(f *testing.F) {
	f.Add([]byte("server = \"https://a\"\n[host.\"http://b\"]\nca = [\"x\"]\n[host.\"http://b\".header]\nx = \"y\"\n"))
	f.Add([]byte("host = { a = {} }"))
	f.Fuzz(func(t *testing.T, b []byte) {
		hosts, err := ParseHosts(b, "/d", "r.example")
		if err == nil && (len(hosts) == 0 || !hosts[len(hosts)-1].Server) {
			t.Errorf("no server in %+v", hosts)
		}
	})
}

func FuzzParseChallenge(f *testing.F) {
	f.Add(`Bearer realm="https://a/b",service="s"`)
	f.Fuzz(func(_ *testing.T, v string) { parseChallenge(v) })
}
