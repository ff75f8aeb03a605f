package registry

import (
	"context"
	"encoding/json"
	"testing"
)

// Any k3s registries.yaml gives hosts to try in turn, or an error.
func FuzzParseRegistries(f *testing.F) {
	f.Add([]byte("mirrors:\n  r.example:\n    endpoint: [\"https://m.example/v2\", \"http://[::1]:5000\"]\n    rewrite: {\"^(.*)$\": \"x/$1\"}\nconfigs:\n  m.example:\n    auth: {username: u, password: p}\n    tls: {insecure_skip_verify: true}\n"), "r.example")
	f.Add([]byte("mirrors: {\"*\": {endpoint: []}}"), "")
	f.Fuzz(func(t *testing.T, b []byte, host string) {
		hosts, err := parseRegistries(b, host)
		if err != nil {
			return
		}
		for _, h := range hosts {
			for _, r := range h.rewrites {
				_ = r.pattern.ReplaceAllString("library/busybox", r.to)
			}
		}
	})
}

// Any docker config.json gives credentials or says why not. Helpers are left out: they are programs.
func FuzzDockerConfig(f *testing.F) {
	f.Add([]byte(`{"auths":{"https://r.example/v1/":{"auth":"dTpw"},"r.example/a/b":{"username":"u","password":"p"}}}`), "r.example", "a/b/c")
	f.Fuzz(func(t *testing.T, b []byte, host, repository string) {
		var c dockerConfig
		if json.Unmarshal(b, &c) != nil {
			return
		}
		c.CredsStore, c.CredHelpers = "", nil
		if _, trail := c.find(context.Background(), host, repository); len(trail) == 0 {
			t.Error("nothing said")
		}
	})
}
