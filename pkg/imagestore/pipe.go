package imagestore

import (
	"errors"
	"io"
	"sync"

	"github.com/seed-9a14075a/cri-server/pkg/imagestore/inflate"
)

// errReaderGone is what a send into a pipe gets once its reader has given up.
var errReaderGone = errors.New("reader gone")

// piece is a part of a stream: buf[from:to].
type piece struct {
	buf      []byte
	from, to int
}

// pieces is how many pieces may be on their way between two stages: enough for either to be busy while the other isn't,
// and no more, for they are most of what a pull needs of memory.
const pieces = 2

// pipe hands pieces from one stage of a pipeline to the next, so that the stages run at the same time and nothing is
// copied in between. Whoever uses a piece last recycles its buffer.
type pipe struct {
	full chan piece
	gone chan struct{}
	once sync.Once
	err  error
}

func newPipe() *pipe { return &pipe{full: make(chan piece, pieces), gone: make(chan struct{})} }

var buffers = sync.Pool{New: func() any { return new([inflate.BufferSize]byte) }}

// newBuffer returns a buffer of inflate.BufferSize bytes.
func newBuffer() []byte { return buffers.Get().(*[inflate.BufferSize]byte)[:] }

// recycle takes a buffer back.
func recycle(b []byte) { buffers.Put((*[inflate.BufferSize]byte)(b)) }

// send hands a piece on. Only the writer calls it.
func (p *pipe) send(c piece) error {
	select {
	case p.full <- c:
		return nil
	case <-p.gone:
		return errReaderGone
	}
}

// fill sends what r has.
func (p *pipe) fill(r io.Reader) error {
	for {
		b := newBuffer()
		n, err := io.ReadFull(r, b[:inflate.Chunk])
		if n > 0 {
			if err := p.send(piece{b, 0, n}); err != nil {
				return err
			}
		}
		switch {
		case err == io.EOF || err == io.ErrUnexpectedEOF: // of ReadFull; an error of r that is or wraps it is something else
			return nil
		case err != nil:
			return err
		}
	}
}

// closeWrite ends the stream, with err if that isn't nil. Only the writer calls it.
func (p *pipe) closeWrite(err error) {
	p.err = err
	close(p.full)
}

// next returns the next piece, io.EOF at the end. Only the reader calls it.
func (p *pipe) next() (piece, error) {
	select {
	case <-p.gone:
		return piece{}, errReaderGone
	default:
	}
	c, ok := <-p.full
	if ok {
		return c, nil
	}
	if p.err != nil {
		return piece{}, p.err
	}
	return piece{}, io.EOF
}

// closeRead lets the writer fail. Only the reader calls it.
func (p *pipe) closeRead() { p.once.Do(func() { close(p.gone) }) }

// pieceReader is the reader's end of a pipe as an io.Reader whose data can also be used where it lies.
type pieceReader struct {
	from *pipe
	cur  piece
}

// Peek returns what lies ready, at least one byte. It stays valid until the next call of any other method than Peek.
func (r *pieceReader) Peek() ([]byte, error) {
	for r.cur.from == r.cur.to {
		if r.cur.buf != nil {
			recycle(r.cur.buf)
			r.cur = piece{}
		}
		c, err := r.from.next()
		if err != nil {
			return nil, err
		}
		r.cur = c
	}
	return r.cur.buf[r.cur.from:r.cur.to], nil
}

// Discard takes n bytes, of those that Peek returned.
func (r *pieceReader) Discard(n int) { r.cur.from += n }

// Read implements io.Reader.
func (r *pieceReader) Read(b []byte) (int, error) {
	ready, err := r.Peek()
	if err != nil {
		return 0, err
	}
	n := copy(b, ready)
	r.Discard(n)
	return n, nil
}
