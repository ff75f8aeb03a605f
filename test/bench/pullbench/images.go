package main

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"

	"github.com/seed-9a14075a/cri-server/pkg/imagestore/imagetest"
)

// recipe is one test image; sizes are of what lies in the layers, compressed about half.
type recipe struct {
	name        string
	layers      int
	bytes       int
	files       int // of all layers; 0 is what a distribution has, some 40 KB each
	compression imagetest.Compression
}

var recipes = []recipe{
	{name: "1x200m", layers: 1, bytes: 440 << 20},
	{name: "4x50m", layers: 4, bytes: 440 << 20},
	{name: "16x12m", layers: 16, bytes: 440 << 20},
	{name: "files20k", layers: 1, bytes: 40 << 20, files: 20000},
	{name: "zstd4x50m", layers: 4, bytes: 440 << 20, compression: imagetest.Zstd},
}

func imageNames() []string {
	var out []string
	for _, r := range recipes {
		out = append(out, r.name)
	}
	return out
}

// load builds an image, or takes it from the cache.
func (r recipe) load(cache string) (imagetest.Built, error) {
	dir := filepath.Join(cache, r.name)
	b, err := readBuilt(dir)
	if err == nil {
		return b, nil
	}
	fmt.Fprintf(os.Stderr, "building image %s\n", r.name)
	img := imagetest.Image{Compression: r.compression}
	rnd := rand.New(rand.NewChaCha8([32]byte([]byte(fmt.Sprintf("%-32s", r.name)))))
	g := newGenerator(rnd)
	for l := range r.layers {
		img.Layers = append(img.Layers, g.layer(l, r.bytes/r.layers, r.files/r.layers))
	}
	b = img.Build()
	return b, writeBuilt(dir, b)
}

// generator makes file contents about as compressible as programs and libraries are.
type generator struct {
	rnd   *rand.Rand
	words [][]byte
}

func newGenerator(rnd *rand.Rand) *generator {
	g := &generator{rnd: rnd}
	for range 4096 {
		g.words = append(g.words, g.noise(3+rnd.IntN(10)))
	}
	return g
}

func (g *generator) noise(n int) []byte {
	b := make([]byte, (n+7)/8*8)
	for i := 0; i < len(b); i += 8 {
		binary.LittleEndian.PutUint64(b[i:], g.rnd.Uint64())
	}
	return b[:n]
}

func (g *generator) content(n int) []byte {
	out := make([]byte, 0, n+4096)
	for len(out) < n {
		if g.rnd.IntN(10) < 3 {
			out = append(out, g.noise(1024)...)
			continue
		}
		for stop := len(out) + 1024; len(out) < stop; {
			// Some words are far commoner than others, as instructions and symbols are.
			i := int(math.Abs(g.rnd.NormFloat64()) * 600)
			out = append(out, g.words[min(i, len(g.words)-1)]...)
		}
	}
	return out[:n]
}

func (g *generator) layer(layer, bytes, files int) imagetest.Layer {
	all := map[string]imagetest.File{}
	for i := 0; bytes > 0; i++ {
		n := int(math.Exp(g.rnd.NormFloat64()*1.6 + 9.3)) // median 11 KB, mean 39 KB
		if files > 0 {
			n = 256 + g.rnd.IntN(3500)
			if i == files {
				break
			}
		}
		n = min(n, bytes, 32<<20)
		bytes -= n
		all[fmt.Sprintf("usr/lib/l%d/d%d/s%d/file-%d", layer, i/400, i/40, i)] = imagetest.File{Content: g.content(n)}
	}
	return imagetest.Files(all)
}

func readBuilt(dir string) (imagetest.Built, error) {
	b := imagetest.Built{Blobs: map[digest.Digest][]byte{}}
	j, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	if err != nil {
		return b, err
	}
	if err := json.Unmarshal(j, &b.Manifest); err != nil {
		return b, err
	}
	entries, err := os.ReadDir(filepath.Join(dir, "blobs"))
	if err != nil {
		return b, err
	}
	for _, e := range entries {
		blob, err := os.ReadFile(filepath.Join(dir, "blobs", e.Name()))
		if err != nil {
			return b, err
		}
		b.Blobs[digest.NewDigestFromEncoded(digest.SHA256, e.Name())] = blob
	}
	return b, nil
}

func writeBuilt(dir string, b imagetest.Built) error {
	if err := os.MkdirAll(filepath.Join(dir, "blobs"), 0o755); err != nil {
		return err
	}
	for d, blob := range b.Blobs {
		if err := os.WriteFile(filepath.Join(dir, "blobs", d.Encoded()), blob, 0o644); err != nil {
			return err
		}
	}
	j, err := json.Marshal(b.Manifest)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "manifest.json"), j, 0o644) // last: it says that all is there
}
