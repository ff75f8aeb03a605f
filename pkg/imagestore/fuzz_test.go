package imagestore

import (
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func FuzzParseName(f *testing.F) {
	for _, s := range []string{"busybox", "a.b:5000/x/y:tag@sha256:" + strings.Repeat("a", 64), "[::1]:5000/x", "a/../b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := parseName(s)
		if err != nil {
			return
		}
		again, err := parseName(n.String())
		if err != nil || again.String() != n.String() {
			t.Errorf("%q is normalised to %q, which gives %v, %v", s, n, again, err)
		}
		if strings.Contains(object(n), "/") || strings.Contains(n.String(), "..") {
			t.Errorf("%q asks for %q of %q", s, object(n), n)
		}
	})
}

func FuzzManifest(f *testing.F) {
	cfg, err := Config{Root: "x", Platform: &ocispec.Platform{OS: "linux", Architecture: "amd64"}}.withDefaults()
	if err != nil {
		f.Fatal(err)
	}
	s := &Disk{cfg: cfg}
	d := "sha256:" + strings.Repeat("a", 64)
	f.Add([]byte(`{"schemaVersion":2,"config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"`+d+`","size":3},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"`+d+`","size":3}]}`), []byte(`{"rootfs":{"type":"layers","diff_ids":["`+d+`"]}}`))
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"`+d+`","size":3,"platform":{"os":"linux","architecture":"amd64"}}]}`), []byte(`{}`))
	f.Fuzz(func(t *testing.T, manifest, config []byte) {
		_, m, err := s.choose(t.Context(), noSource{}, ocispec.Descriptor{}, manifest)
		if err != nil {
			return
		}
		for _, l := range append(m.manifest.Layers, m.manifest.Config) {
			if l.Digest.Validate() != nil || l.Size < 0 {
				t.Errorf("accepted %+v", l)
			}
		}
		c, err := s.parseConfig(config, m.manifest)
		if err == nil && len(c.RootFS.DiffIDs) != len(m.manifest.Layers) {
			t.Error("accepted a config for another number of layers")
		}
	})
}
