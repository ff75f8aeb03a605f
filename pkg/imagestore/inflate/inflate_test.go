package inflate

import (
	"bytes"
	stdgzip "compress/gzip"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/gzip"
)

// sink collects output; limit ends runaway streams.
type sink struct {
	got   bytes.Buffer
	limit int
}

func (s *sink) Bytes() []byte { return s.got.Bytes() }

func (s *sink) Buffer() []byte { return make([]byte, BufferSize) }

func (s *sink) Emit(buf []byte, from, to int) ([]byte, error) {
	s.got.Write(buf[from:to])
	if s.limit > 0 && s.got.Len() > s.limit {
		return nil, errLimit
	}
	for i := range buf { // the decoder must not rely on what it gave away
		buf[i] = 0xaa
	}
	return buf, nil
}

var errLimit = errors.New("limit")

func sample(kind string, n int, seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := range b {
		switch kind {
		case "noise":
			b[i] = byte(r.Uint32())
		case "text":
			b[i] = "abcdefgh  \n"[r.IntN(11)]
		case "skewed":
			b[i] = byte(r.ExpFloat64() * 12)
		case "runs":
			if i > 0 && r.IntN(50) > 0 {
				b[i] = b[i-1]
			} else {
				b[i] = byte(r.Uint32())
			}
		case "far":
			if i >= 32000 && r.IntN(400) > 0 {
				b[i] = b[i-32000]
			} else {
				b[i] = byte(r.Uint32())
			}
		}
	}
	return b
}

func TestDecode(t *testing.T) {
	for _, kind := range []string{"zero", "noise", "text", "skewed", "runs", "far"} {
		for _, n := range []int{0, 1, 3, 100, 65535, 65536, Chunk, Chunk + 1, 3*Chunk + 77} {
			for _, level := range []int{gzip.HuffmanOnly, 0, 1, 5, 9} {
				data := sample(kind, n, uint64(n))
				for name, z := range map[string][]byte{"klauspost": pack(t, data, level), "std": stdPack(t, data, level)} {
					var s sink
					if err := Decode(bytes.NewReader(z), &s); err != nil {
						t.Fatalf("%s %s %d level %d: %v", name, kind, n, level, err)
					}
					if !bytes.Equal(s.Bytes(), data) {
						t.Fatalf("%s %s %d level %d: differs", name, kind, n, level)
					}
				}
			}
		}
	}
}

func pack(t testing.TB, data []byte, level int) []byte {
	var buf bytes.Buffer
	w, err := gzip.NewWriterLevel(&buf, level)
	if err != nil {
		t.Fatal(err)
	}
	_, _ = w.Write(data)
	_ = w.Close()
	return buf.Bytes()
}

func stdPack(t testing.TB, data []byte, level int) []byte {
	var buf bytes.Buffer
	w, err := stdgzip.NewWriterLevel(&buf, level)
	if err != nil {
		t.Fatal(err)
	}
	w.Name, w.Comment, w.Extra = "name", "comment", []byte("extra")
	_, _ = w.Write(data)
	_ = w.Close()
	return buf.Bytes()
}

func TestShapes(t *testing.T) {
	a, b := sample("text", 100_000, 1), sample("skewed", 70_000, 2)
	both := append(bytes.Clone(a), b...)
	two := append(pack(t, a, 6), pack(t, b, 1)...)
	for name, r := range map[string]io.Reader{
		"members":        bytes.NewReader(two),
		"one byte reads": iotest.OneByteReader(bytes.NewReader(two)),
		"data with EOF":  iotest.DataErrReader(bytes.NewReader(two)),
		"padding":        bytes.NewReader(append(bytes.Clone(two), make([]byte, 100_000)...)),
	} {
		var s sink
		if err := Decode(r, &s); err != nil || !bytes.Equal(s.Bytes(), both) {
			t.Errorf("%s: %v, %d bytes", name, err, s.got.Len())
		}
	}
	var s sink
	if err := Decode(iotest.TimeoutReader(iotest.OneByteReader(bytes.NewReader(two))), &s); !errors.Is(err, iotest.ErrTimeout) {
		t.Errorf("read error: %v", err)
	}
	s = sink{limit: 1000}
	if err := Decode(bytes.NewReader(two), &s); !errors.Is(err, errLimit) {
		t.Errorf("emit error: %v", err)
	}
}

func TestCorrupt(t *testing.T) {
	data := sample("text", 5000, 3)
	good := pack(t, data, 6)
	for i := range good { // cut anywhere
		var s sink
		if err := Decode(bytes.NewReader(good[:i]), &s); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("cut at %d: %v", i, err)
		}
	}
	for i := range good {
		for bit := range 8 {
			z := bytes.Clone(good)
			z[i] ^= 1 << bit
			var s sink
			s.limit = 1 << 20
			if err := Decode(bytes.NewReader(z), &s); err == nil && !bytes.Equal(s.Bytes(), data) {
				t.Fatalf("bit %d of byte %d: wrong data, no error", bit, i)
			}
		}
	}
	for name, z := range map[string][]byte{
		"empty": {}, "no gzip": []byte("hello, this is no gzip"), "garbage behind": append(bytes.Clone(good), 1, 2, 3),
		"garbage behind padding": append(append(bytes.Clone(good), make([]byte, 300_000)...), 1),
	} {
		var s sink
		if err := Decode(bytes.NewReader(z), &s); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// FuzzDecode compares with the standard library.
func FuzzDecode(f *testing.F) {
	for _, kind := range []string{"noise", "text", "skewed", "runs"} {
		for _, level := range []int{gzip.HuffmanOnly, 0, 1, 6} {
			f.Add(pack(f, sample(kind, 3000, 1), level)[10:])
		}
	}
	f.Fuzz(func(t *testing.T, z []byte) {
		z = append([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff}, z...)
		const limit = 8 << 20
		s := sink{limit: limit}
		err := Decode(bytes.NewReader(z), &s)
		if errors.Is(err, errLimit) {
			return
		}
		var want []byte
		r, werr := stdgzip.NewReader(bytes.NewReader(z))
		if werr == nil {
			want, werr = io.ReadAll(io.LimitReader(r, limit+1))
		}
		if werr == nil && (err != nil || !bytes.Equal(want, s.Bytes())) {
			t.Errorf("the standard library reads %d bytes, we %d: %v", len(want), s.got.Len(), err)
		}
		if err == nil && werr != nil && !errors.Is(werr, stdgzip.ErrHeader) { // ErrHeader: padding
			t.Errorf("the standard library says %v", werr)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	for _, kind := range []string{"noise", "text", "skewed", "runs"} {
		data := sample(kind, 8<<20, 1)
		z := pack(b, data, 6)
		b.Run(fmt.Sprint(kind, "/this"), func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				if err := Decode(bytes.NewReader(z), &discard{}); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprint(kind, "/klauspost"), func(b *testing.B) {
			b.SetBytes(int64(len(data)))
			for b.Loop() {
				r, err := gzip.NewReader(bytes.NewReader(z))
				if err == nil {
					_, err = io.Copy(io.Discard, r)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

type discard struct{ sink }

func (discard) Emit(buf []byte, _, _ int) ([]byte, error) { return buf, nil }
