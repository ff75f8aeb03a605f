package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

// tarOf is an archive with an OCI layout's index, docker's manifest.json, a blob and a link; each may be any bytes.
func tarOf(index, manifest, blob []byte, link string) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(name string, content []byte) {
		_ = w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content)), Typeflag: tar.TypeReg})
		_, _ = w.Write(content)
	}
	add("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	add("index.json", index)
	add("manifest.json", manifest)
	add("blobs/sha256/"+digest.FromBytes(blob).Encoded(), blob)
	add("config.json", blob)
	_ = w.WriteHeader(&tar.Header{Name: "l/layer.tar", Typeflag: tar.TypeSymlink, Linkname: link})
	_ = w.Close()
	return b.Bytes()
}

// Whatever an archive says of itself, its files land where the caller said, and what it lists can be looked up or not.
func FuzzRead(f *testing.F) {
	blob := []byte(`{"schemaVersion":2,"config":{},"layers":[]}`)
	d := digest.FromBytes(blob).String()
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"`+d+`","size":3,"annotations":{"io.containerd.image.name":"x:1","org.opencontainers.image.ref.name":"1"}}]}`),
		[]byte(`[{"Config":"config.json","RepoTags":["x:1"],"Layers":["l/layer.tar"]}]`), blob, "../config.json")
	f.Add([]byte(nil), []byte(`[{"Config":"../../etc/passwd","RepoTags":null,"Layers":["/l/layer.tar","a"]}]`), blob, "layer.tar")
	f.Add([]byte(`{"manifests":[{"digest":"sha256:0","size":-1}]}`), []byte(nil), []byte(nil), "/../..")
	f.Fuzz(func(t *testing.T, index, manifest, blob []byte, link string) {
		if len(link) > 90 || strings.ContainsRune(link, 0) {
			return
		}
		dir := filepath.Join(t.TempDir(), "spool")
		for _, b := range [][]byte{tarOf(index, manifest, blob, link), index} {
			a, err := Read(context.Background(), bytes.NewReader(b), dir, Limits{Bytes: 1 << 20, Entries: 100, Document: 1 << 16})
			if err != nil {
				continue
			}
			for _, i := range a.Images {
				_, _, _ = a.Manifest(context.Background(), i.Descriptor.Digest.String(), 1<<16)
				if r, err := a.Blob(context.Background(), i.Descriptor); err == nil {
					_ = r.Close()
				}
			}
		}
		if out, _ := filepath.Glob(filepath.Join(filepath.Dir(dir), "*")); len(out) > 1 {
			t.Errorf("files beside the spool: %v", out)
		}
	})
}
