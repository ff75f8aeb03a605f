package imagestore_test

import (
	"bytes"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore/imagetest"
)

// TestDistribution pulls from the reference registry, Debian's docker-registry.
func TestDistribution(t *testing.T) {
	testns.Root(t)
	bin, err := exec.LookPath("docker-registry")
	if err != nil {
		t.Skip("docker-registry is not installed (Debian package docker-registry)")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	host := l.Addr().String()
	_ = l.Close()
	dir := t.TempDir()
	conf := filepath.Join(dir, "config.yml")
	text := "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: " + dir + "/data\nhttp:\n  addr: " + host + "\n"
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c := exec.Command(bin, "serve", conf)
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = c.Process.Kill()
		_ = c.Wait()
		if t.Failed() {
			t.Log(out.String())
		}
	}()
	up := false
	for end := time.Now().Add(20 * time.Second); !up && time.Now().Before(end); {
		if resp, err := http.Get("http://" + host + "/v2/"); err == nil {
			_ = resp.Body.Close()
			up = true
		} else {
			time.Sleep(20 * time.Millisecond)
		}
	}
	if !up {
		t.Fatal("docker-registry doesn't answer")
	}
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
