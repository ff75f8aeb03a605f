// Package inflate decompresses gzip streams (RFC 1952, RFC 1951), faster than the packages made for general use: pulling
// an image is bound by it.
//
// What makes it fast: input and output lie in large buffers, so that the inner loop needs no call and no state machine;
// bits are taken from a 64-bit word that is filled without a branch; one table look-up decodes a symbol with its
// length; finished output is handed on where it lies instead of being copied. It is memory safe Go: a hostile stream
// ends with an error.
package inflate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"
)

// ErrCorrupt is returned for what is no gzip stream.
var ErrCorrupt = errors.New("gzip: corrupt stream")

const (
	window   = 32 << 10
	maxMatch = 258
	// slack is how far the copying of a match may write over its end.
	slack = 16
	// pad is how many zero bytes follow the input's end: loads and positions may run into them.
	pad = 64
	// ahead is what need makes available, and behind what it keeps: align gives back bytes that were loaded.
	ahead, behind = 64, 8
	// Chunk is the size of the pieces of output.
	Chunk = 128 << 10
	// BufferSize is the size of the buffers that Decoder works on: history, a chunk, and room for one match.
	BufferSize = window + Chunk + maxMatch + slack
)

// Output takes the decoder's output.
type Output interface {
	// Emit takes over buf, of which buf[from:to] is the output, and returns another of BufferSize bytes. The decoder reads
	// buf no more once Emit was called.
	Emit(buf []byte, from, to int) (next []byte, err error)
	// Buffer returns the first buffer.
	Buffer() []byte
}

// Decoder decodes one stream.
type Decoder struct {
	in  io.Reader
	out Output

	// src[pos:end] is input that was not loaded into bits; pad bytes behind end are zero at the end of the stream.
	src      []byte
	pos, end int
	eof      bool
	// bits has the next nbits bits of the stream, the first in the lowest bit.
	bits  uint64
	nbits uint

	// dst[from:op] is output that was not emitted; dst[base:from] is history.
	dst            []byte
	base, from, op int

	crc  uint32
	size uint32

	lit, dist table
}

// Decode reads gzip members from in until its end and writes their content to out. What follows the last member must be
// zero bytes (tar's padding of some builders) or nothing. in is read to its end.
func Decode(in io.Reader, out Output) error {
	src := sources.Get().(*[Chunk + pad]byte)
	defer sources.Put(src)
	d := &Decoder{in: in, out: out, src: src[:]}
	d.dst = out.Buffer()
	if len(d.dst) < BufferSize {
		return fmt.Errorf("inflate: buffer of %d bytes", len(d.dst))
	}
	d.base, d.from, d.op = window, window, window
	for first := true; ; first = false {
		more, err := d.header(first)
		if err != nil {
			return err
		}
		if !more {
			return nil
		}
		if err := d.member(); err != nil {
			return err
		}
	}
}

var sources = sync.Pool{New: func() any { return new([Chunk + pad]byte) }}

// member decodes one member after its header.
func (d *Decoder) member() error {
	d.crc, d.size = 0, 0
	d.base = d.op // a member can't refer to the one before
	for last := false; !last; {
		if err := d.need(); err != nil {
			return err
		}
		d.refill()
		last = d.take(1) == 1
		var err error
		switch d.take(2) {
		case 0:
			err = d.stored()
		case 1:
			d.lit.fixedLiterals()
			d.dist.fixedDistances()
			err = d.huffman()
		case 2:
			if err = d.dynamic(); err == nil {
				err = d.huffman()
			}
		default:
			err = fmt.Errorf("%w: block type 3", ErrCorrupt)
		}
		if err != nil {
			return err
		}
	}
	if err := d.emit(); err != nil {
		return err
	}
	return d.trailer()
}

// emit hands out what is finished and goes on in another buffer, with the history at its start.
func (d *Decoder) emit() error {
	if d.op == d.from {
		return nil
	}
	d.crc = crc32.Update(d.crc, crc32.IEEETable, d.dst[d.from:d.op])
	d.size += uint32(d.op - d.from)
	history := min(window, d.op-d.base)
	old, from, to := d.dst, d.from, d.op
	var keep [window]byte
	copy(keep[:history], old[to-history:to])
	next, err := d.out.Emit(old, from, to)
	if err != nil {
		return err
	}
	if len(next) < BufferSize {
		return fmt.Errorf("inflate: buffer of %d bytes", len(next))
	}
	copy(next[window-history:window], keep[:history])
	d.dst, d.base, d.from, d.op = next, window-history, window, window
	return nil
}

// need makes ahead bytes of input available, or what is left of it with the padding behind it. It fails once bits were
// taken that are not there.
func (d *Decoder) need() error {
	if d.eof {
		if d.pos-int(d.nbits>>3) > d.end {
			return d.short()
		}
		return nil
	}
	if d.end-d.pos >= ahead {
		return nil
	}
	start := max(d.pos-behind, 0)
	d.end = copy(d.src, d.src[start:d.end])
	d.pos -= start
	for d.end-d.pos < ahead && !d.eof {
		n, err := d.in.Read(d.src[d.end : len(d.src)-pad])
		d.end += n
		if err == io.EOF {
			d.eof = true
		} else if err != nil {
			return err
		}
	}
	if d.eof {
		clear(d.src[d.end : d.end+pad])
	}
	return nil
}

func (d *Decoder) short() error { return fmt.Errorf("%w: %w", ErrCorrupt, io.ErrUnexpectedEOF) }

// refill fills bits to at least 56. What lies above nbits is what the next load brings again.
func (d *Decoder) refill() {
	d.bits |= binary.LittleEndian.Uint64(d.src[d.pos:]) << (d.nbits & 63)
	d.pos += int((63 - d.nbits) >> 3)
	d.nbits |= 56
}

// take removes n bits, of those that refill brought.
func (d *Decoder) take(n uint) uint64 {
	v := d.bits & (1<<n - 1)
	d.bits >>= n
	d.nbits -= n
	return v
}

// align gives whole bytes in bits back to the input.
func (d *Decoder) align() error {
	d.pos -= int(d.nbits >> 3)
	d.bits, d.nbits = 0, 0
	if d.pos > d.end {
		return d.short()
	}
	return nil
}

// stored copies an uncompressed block.
func (d *Decoder) stored() error {
	if err := d.align(); err != nil {
		return err
	}
	var head [4]byte
	if err := d.readFull(head[:]); err != nil {
		return err
	}
	n := int(binary.LittleEndian.Uint16(head[:]))
	if n^0xffff != int(binary.LittleEndian.Uint16(head[2:])) {
		return fmt.Errorf("%w: stored block's length", ErrCorrupt)
	}
	for n > 0 {
		m := min(n, window+Chunk-d.op)
		if err := d.readFull(d.dst[d.op : d.op+m]); err != nil {
			return err
		}
		d.op += m
		n -= m
		if d.op == window+Chunk {
			if err := d.emit(); err != nil {
				return err
			}
		}
	}
	return nil
}

// readFull reads whole bytes; bits must be empty.
func (d *Decoder) readFull(p []byte) error {
	for len(p) > 0 {
		if d.pos >= d.end {
			if err := d.need(); err != nil {
				return err
			}
			if d.pos >= d.end {
				return d.short()
			}
		}
		n := copy(p, d.src[d.pos:d.end])
		d.pos += n
		p = p[n:]
	}
	return nil
}
