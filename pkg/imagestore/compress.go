package imagestore

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

const (
	chunkSize = 256 << 10
	chunks    = 8
	// maxWindow is zstd's window, which is memory; images are made with at most 8 MiB (level 19), --ultra goes to 128 MiB.
	maxWindow = 128 << 20
)

// newDecompressor looks at the first bytes: gzip, zstd, or neither.
func newDecompressor(r io.Reader) (io.Reader, func(), error) {
	br := bufio.NewReaderSize(r, chunkSize)
	head, err := br.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, nil, fmt.Errorf("gzip: %w: %w", err, errdefs.ErrDataLoss)
		}
		return z, func() { _ = z.Close() }, nil
	case bytes.Equal(head, []byte{0x28, 0xb5, 0x2f, 0xfd}),
		len(head) == 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:], []byte{0x2a, 0x4d, 0x18}): // skippable frame
		z, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	}
	return br, func() {}, nil
}

// decompress copies r to w, and reads r to its end.
func decompress(r io.Reader, w io.Writer) error {
	z, done, err := newDecompressor(r)
	if err != nil {
		return err
	}
	defer done()
	if _, err = io.CopyBuffer(w, struct{ io.Reader }{z}, make([]byte, chunkSize)); err != nil {
		return decodeError(err)
	}
	_, err = io.CopyBuffer(io.Discard, struct{ io.Reader }{r}, make([]byte, chunkSize))
	return err
}

func decodeError(err error) error {
	for _, e := range []error{gzip.ErrHeader, gzip.ErrChecksum, zstd.ErrMagicMismatch, zstd.ErrCRCMismatch, io.ErrUnexpectedEOF} {
		if errors.Is(err, e) {
			return fmt.Errorf("decompress: %w: %w", err, errdefs.ErrDataLoss)
		}
	}
	if errors.Is(err, zstd.ErrWindowSizeExceeded) || errors.Is(err, zstd.ErrDecoderSizeExceeded) {
		return fmt.Errorf("decompress: %w: %w", err, errdefs.ErrResourceExhausted)
	}
	return err
}

// errReaderGone is what a write into a chunkPipe gets once its reader has given up.
var errReaderGone = errors.New("reader gone")

// chunkPipe is io.Pipe with room for some chunks, so that the stages of a pipeline run at the same time.
type chunkPipe struct {
	full, free chan []byte
	gone       chan struct{}
	once       sync.Once
	rest       []byte // the part of cur that was not read yet
	cur        []byte
	err        error
}

func newChunkPipe() *chunkPipe {
	p := &chunkPipe{full: make(chan []byte, chunks), free: make(chan []byte, chunks+2), gone: make(chan struct{})}
	return p
}

// Write implements io.Writer.
func (p *chunkPipe) Write(b []byte) (int, error) {
	n := 0
	for len(b) > 0 {
		var c []byte
		select {
		case c = <-p.free:
		default:
			c = make([]byte, 0, chunkSize)
		}
		m := min(len(b), cap(c))
		c = append(c[:0], b[:m]...)
		select {
		case p.full <- c:
		case <-p.gone:
			return n, errReaderGone
		}
		n += m
		b = b[m:]
	}
	return n, nil
}

// closeWrite ends the stream, with err if that isn't nil. Only the writer calls it.
func (p *chunkPipe) closeWrite(err error) {
	p.err = err
	close(p.full)
}

// Read implements io.Reader.
func (p *chunkPipe) Read(b []byte) (int, error) {
	if len(p.rest) == 0 {
		if p.cur != nil {
			select {
			case p.free <- p.cur:
			default:
			}
			p.cur = nil
		}
		select {
		case <-p.gone:
			return 0, errReaderGone
		default:
		}
		c, ok := <-p.full
		if !ok {
			if p.err != nil {
				return 0, p.err
			}
			return 0, io.EOF
		}
		p.cur, p.rest = c, c
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

// closeRead lets the writer fail. Only the reader calls it.
func (p *chunkPipe) closeRead() { p.once.Do(func() { close(p.gone) }) }

// capable reports an effective capability of this process, capget(2).
func capable(c uint) bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if unix.Capget(&hdr, &data[0]) != nil {
		return false
	}
	return data[c/32].Effective&(1<<(c%32)) != 0
}
