package unpack

import (
	"fmt"
	"io"

	"github.com/containerd/errdefs"
)

// Peeker is a reader whose data can be used where it lies.
type Peeker interface {
	io.Reader
	// Peek returns what lies ready, at least one byte, valid until the next Read or Discard.
	Peek() ([]byte, error)
	// Discard takes n bytes of those that Peek returned.
	Discard(n int)
}

// stream is the tar stream. Files' contents are taken from it behind package tar's back: tar.Reader reads headers and no
// byte further, so that the content is what comes next; when it skips the content later on, it skips nothing.
type stream struct {
	r Peeker
	// n counts all that was taken; more than limit bytes is a decompression bomb.
	n, limit int64
	// taken is what was used already and tar.Reader is still to skip.
	taken int64
}

func newStream(r io.Reader, limit int64) *stream {
	p, ok := r.(Peeker)
	if !ok {
		p = &buffered{r: r, buf: make([]byte, 256<<10)}
	}
	return &stream{r: p, limit: limit}
}

// Read implements io.Reader.
func (s *stream) Read(p []byte) (int, error) {
	if s.taken > 0 {
		n := int(min(s.taken, int64(len(p))))
		s.taken -= int64(n)
		return n, nil
	}
	n, err := s.r.Read(p)
	if cerr := s.count(n); cerr != nil {
		return n, cerr
	}
	return n, err
}

func (s *stream) count(n int) error {
	s.n += int64(n)
	if s.limit > 0 && s.n > s.limit {
		return fmt.Errorf("layer unpacks to more than %d bytes: %w", s.limit, errdefs.ErrResourceExhausted)
	}
	return nil
}

// content calls write with the next size bytes, in pieces. It must be called for a plain file only, right after its
// header.
func (s *stream) content(size int64, write func([]byte) error) error {
	for left := size; left > 0; {
		b, err := s.r.Peek()
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return fmt.Errorf("read content: %w", tarError(err))
		}
		b = b[:min(left, int64(len(b)))]
		if err := s.count(len(b)); err != nil {
			return err
		}
		if err := write(b); err != nil {
			return err
		}
		s.r.Discard(len(b))
		left -= int64(len(b))
	}
	s.taken = size
	return nil
}

// buffered makes any reader a Peeker.
type buffered struct {
	r        io.Reader
	buf      []byte
	from, to int
	err      error
}

// Peek implements Peeker.
func (b *buffered) Peek() ([]byte, error) {
	for b.from == b.to {
		if b.err != nil {
			return nil, b.err
		}
		b.from, b.to = 0, 0
		b.to, b.err = b.r.Read(b.buf)
	}
	return b.buf[b.from:b.to], nil
}

// Discard implements Peeker.
func (b *buffered) Discard(n int) { b.from += n }

// Read implements io.Reader.
func (b *buffered) Read(p []byte) (int, error) {
	ready, err := b.Peek()
	if err != nil {
		return 0, err
	}
	n := copy(p, ready)
	b.Discard(n)
	return n, nil
}
