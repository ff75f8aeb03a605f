package images

import (
	"fmt"
	"math/rand/v2"
	"runtime"
)

const staging = "k8s-staging-cri-tools/"

// Names of images that the repository's own tests use, without their registry.
const (
	Busybox = "e2e-test-images/busybox:1.29-2"
	Web     = "e2e-test-images/nginx:1.14-2"
	DemoWeb = "demo/web:1.0"
	DemoApp = "demo/app:1.0"
	Zstd    = "e2e/busybox:zstd"
	Docker2 = "e2e/busybox:docker"
	Index   = "e2e/busybox:index"
	Private = "private/busybox:1"
	Stalls  = "stall/busybox:1"
	Corrupt = "corrupt/busybox:1"
	// BadStop asks to be stopped by a signal that doesn't exist.
	BadStop = "e2e/bad-stop-signal:1"
)

// DigestRepo is the repository of the image that critest names by a digest of its own. No one else can build that
// image: the digest inside the critest binary is replaced by the one of DigestRepo:latest.
const DigestRepo = staging + "test-image-digest"

// Catalog fills a registry with every image. With big it also has bench/big:200m, nine layers of together about
// 200 MB compressed; that takes some 15 s.
func Catalog(a *Assets, big bool) (*Registry, error) {
	c := &catalog{a: a, r: NewRegistry()}
	c.base = c.layer(a.base(), false)
	c.conformance()
	c.own()
	if big {
		c.big()
	}
	return c.r, c.err
}

type catalog struct {
	a    *Assets
	r    *Registry
	base *Layer
	err  error // the first one; later steps do nothing
}

func (c *catalog) layer(files []File, zstd bool) *Layer {
	if c.err != nil {
		return nil
	}
	l, err := NewLayer(files, zstd)
	c.err = err
	return l
}

func (c *catalog) image(repo, tag string, f Family, cfg RunConfig, layers ...*Layer) *Image {
	if c.err != nil {
		return nil
	}
	i, err := c.a.NewImage(f, cfg, layers...)
	if err != nil {
		c.err = fmt.Errorf("%s:%s: %w", repo, tag, err)
		return nil
	}
	c.r.Add(repo, tag, i)
	return i
}

// conformance makes what critest v1.36.0 pulls.
func (c *catalog) conformance() {
	c.image("e2e-test-images/busybox", "1.29-2", OCI, RunConfig{Cmd: []string{"sh"}}, c.base)
	nginx := c.layer([]File{{Path: "usr/sbin/nginx", Mode: 0o755, Body: c.a.testbox}}, false)
	c.image("e2e-test-images/nginx", "1.14-2", OCI, RunConfig{Cmd: []string{"nginx", "-p", "80"}}, c.base, nginx)
	c.image(staging+"hostnet-nginx-"+runtime.GOARCH, "latest", OCI, RunConfig{Cmd: []string{"nginx", "-p", "12003"}}, c.base, nginx)
	httpd := c.layer([]File{{Path: "usr/sbin/httpd-foreground", Mode: 0o755, Body: c.a.testbox}}, false)
	c.image("e2e-test-images/httpd", "2.4.39-4", OCI, RunConfig{Cmd: []string{"/usr/sbin/httpd-foreground", "-p", "80"}}, c.base, httpd)
	nnp := c.layer([]File{{Path: "nnp", Mode: 0o4755, Body: c.a.testbox}}, false)
	c.image("e2e-test-images/nonewprivs", "1.3", OCI, RunConfig{Entrypoint: []string{"/nnp"}}, c.base, nnp)

	users := map[string]string{"user-uid": "1002", "user-username": "www-data", "user-uid-group": "1003:1004",
		"user-username-group": "www-data:1004", "predefined-group": "1000"}
	for name, user := range users {
		c.image(staging+"test-image-"+name, "latest", OCI, RunConfig{User: user, Cmd: []string{"sh"}}, c.base)
	}
	for _, i := range []struct{ name, tag string }{{"latest", "latest"}, {"tag", "test"}, {"tag", "all"}, {"1", "latest"},
		{"2", "latest"}, {"3", "latest"}, {"digest", "latest"}, {"tags", "1"}} {
		mark := c.layer([]File{{Path: "image-" + i.name + "-" + i.tag, Mode: 0o644}}, false)
		img := c.image(staging+"test-image-"+i.name, i.tag, OCI, RunConfig{Cmd: []string{"sh"}}, c.base, mark)
		if i.name == "tags" && img != nil {
			c.r.Add(staging+"test-image-tags", "2", img)
			c.r.Add(staging+"test-image-tags", "3", img)
		}
	}
	pause := c.layer([]File{{Path: "pause", Mode: 0o755, Body: c.a.testbox}}, false)
	c.image("pause", "3.9", OCI, RunConfig{Entrypoint: []string{"/pause"}, Labels: map[string]string{"pause": "3.9"}}, pause)
	// Other runtimes' sandbox images, so that the suite can be tried with them.
	for _, tag := range []string{"3.10", "3.10.1", "3.10.2"} {
		c.image("pause", tag, OCI, RunConfig{Entrypoint: []string{"/pause"}, Labels: map[string]string{"pause": tag}}, pause)
	}
	for _, tag := range []string{"1.35.0-glibc", "1-uclibc", "1", "1-glibc", "1-musl"} {
		c.image("docker/library/busybox", tag, OCI, RunConfig{Cmd: []string{"sh"}, Labels: map[string]string{"tag": tag}}, c.base)
	}
}

// own makes what this repository's tests and demo pull.
func (c *catalog) own() {
	sh := RunConfig{Cmd: []string{"sh"}}
	c.image("e2e/busybox", "zstd", OCI, RunConfig{Cmd: []string{"sh"}, Labels: map[string]string{"is": "zstd"}}, c.layer(c.a.base(), true))
	c.image("e2e/busybox", "docker", Docker, sh, c.base)
	if i := c.image("e2e/busybox", "plain", OCI, RunConfig{Cmd: []string{"sh"}, Labels: map[string]string{"is": "plain"}}, c.base); i != nil {
		index, err := c.a.NewIndex(i)
		c.err = err
		if err == nil {
			c.r.Add("e2e/busybox", "index", index)
		}
	}
	c.image("e2e/bad-stop-signal", "1", OCI, RunConfig{Cmd: []string{"sleep", "1000"}, StopSignal: "SIGNOPE"}, c.base)
	for _, repo := range []string{"private", "stall", "corrupt"} {
		// A layer no other repository has, so that it can't already be in the store.
		mark := c.layer([]File{{Path: "image-" + repo, Mode: 0o644, Body: noise(64 << 10)}}, false)
		c.image(repo+"/busybox", "1", OCI, sh, c.base, mark)
	}
	web := c.layer([]File{
		{Path: "usr/sbin/nginx", Mode: 0o755, Body: c.a.testbox},
		{Path: "var/www/index.html", Mode: 0o644, Body: []byte("hello from a pod\n")},
	}, false)
	c.image("demo/web", "1.0", OCI, RunConfig{Cmd: []string{"nginx", "-p", "8080"}, User: "www-data", WorkingDir: "/var/www"}, c.base, web)
	app := c.layer([]File{{Path: "app/greet", Mode: 0o755, Body: []byte(greet)}}, true)
	c.image("demo/app", "1.0", OCI, RunConfig{Cmd: []string{"/app/greet"}, Env: []string{
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "GREETING=good day"}}, c.base, app)
}

const greet = `#!/bin/sh
trap 'echo "app: asked to stop"; exit 0' TERM
echo "app: $GREETING from $(hostname), pid $$"
echo "app: a line on stderr" >&2
n=0
while :; do n=$((n+1)); echo "app: beat $n"; sleep 1 & wait $!; done
`

func (c *catalog) big() {
	layers := []*Layer{c.base}
	for l := range 8 {
		var files []File
		for i := range 400 {
			files = append(files, File{Path: fmt.Sprintf("big/%d/small/%03d", l, i), Mode: 0o644, Body: mixed(16<<10, uint64(l*1000+i))})
		}
		for i := range 12 {
			files = append(files, File{Path: fmt.Sprintf("big/%d/large/%02d", l, i), Mode: 0o644, Body: mixed(4<<20, uint64(l*1000+500+i))})
		}
		layers = append(layers, c.layer(files, false))
	}
	c.image("bench/big", "200m", OCI, RunConfig{Cmd: []string{"sh"}}, layers...)
}

func noise(n int) []byte { return random(n, 1) }

// mixed is n bytes of which 42 % don't compress.
func mixed(n int, seed uint64) []byte {
	b := make([]byte, n)
	copy(b, random(n*42/100, seed))
	return b
}

func random(n int, seed uint64) []byte {
	var key [32]byte
	key[0], key[1], key[2] = byte(seed), byte(seed>>8), byte(seed>>16)
	b := make([]byte, n)
	_, _ = rand.NewChaCha8(key).Read(b)
	return b
}
