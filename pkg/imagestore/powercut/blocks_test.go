package powercut_test

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"os"
	"testing"
)

// chunk is how much of a disk is kept or shared at a time.
const chunk = 64 << 10

// blocks is the content of a disk; a chunk that is missing is zero. Copies share chunks, which are therefore never changed in place.
type blocks struct {
	size   int64
	chunks map[int64][]byte
}

// load reads an image file, as sparse as it is.
func load(t *testing.T, name string) blocks {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	b := blocks{size: st.Size(), chunks: map[int64][]byte{}}
	zero := make([]byte, chunk)
	for off := int64(0); off < b.size; off += chunk {
		c := make([]byte, chunk)
		if _, err := f.ReadAt(c, off); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		if !bytes.Equal(c, zero) {
			b.chunks[off] = c
		}
	}
	return b
}

func (b *blocks) clone() blocks { return blocks{b.size, maps.Clone(b.chunks)} }

// read returns how much of p lies on the disk.
func (b *blocks) read(p []byte, off int64) int {
	if off >= b.size {
		return 0
	}
	p = p[:min(int64(len(p)), b.size-off)]
	for done := 0; done < len(p); {
		at := off + int64(done)
		base := at / chunk * chunk
		part := p[done:min(len(p), done+int(base+chunk-at))]
		if c, ok := b.chunks[base]; ok {
			copy(part, c[at-base:])
		} else {
			clear(part)
		}
		done += len(part)
	}
	return len(p)
}

func (b *blocks) write(p []byte, off int64) {
	for done := 0; done < len(p); {
		at := off + int64(done)
		base := at / chunk * chunk
		c := make([]byte, chunk)
		copy(c, b.chunks[base])
		done += copy(c[at-base:], p[done:])
		b.chunks[base] = c
	}
}
