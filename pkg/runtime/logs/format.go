package logs

import (
	"bytes"
	"time"
)

// MaxLine is the longest content of one record in bytes; containerd's default (max_container_log_line_size).
const MaxLine = 16 << 10

// batchSize is when a batch of records is written out. A batch is one write(2).
const batchSize = 256 << 10

// timeFormat is RFC3339Nano with a fixed width, as kubelet writes it too.
const timeFormat = "2006-01-02T15:04:05.000000000Z07:00"

// nanoEnd is the offset behind the last digit of the nanoseconds in timeFormat.
const nanoEnd = len("2006-01-02T15:04:05.000000000")

// Stream is the second field of a record.
type Stream uint8

// The streams of a container. The output of a terminal counts as Stdout.
const (
	Stdout Stream = iota
	Stderr
)

var streamTags = [2][2]string{
	Stdout: {" stdout P ", " stdout F "},
	Stderr: {" stderr P ", " stderr F "},
}

// Buffer is the scratch space in which records are put together. It holds nothing between two calls, so one serves
// every File of a goroutine.
type Buffer struct{ b []byte }

// NewBuffer returns a Buffer of about 300 kB.
func NewBuffer() *Buffer { return &Buffer{b: make([]byte, 0, batchSize+MaxLine+128)} }

// clock gives each record its own time: strictly increasing within one file, so that collectors which take two equal
// lines with the same time for one (Loki does) keep both. It formats once per batch and then counts digits up.
type clock struct {
	last int64 // ns of the newest record
	text [len(timeFormat) + 4]byte
	n    int
}

// start sets the clock to now, or just behind the last record where now is not later.
func (c *clock) start(now time.Time) {
	ns := max(now.UnixNano(), c.last+1)
	c.last = ns
	c.n = len(time.Unix(0, ns).In(now.Location()).AppendFormat(c.text[:0], timeFormat))
}

// next moves on by 1 ns.
func (c *clock) next(loc *time.Location) {
	c.last++
	for i := nanoEnd - 1; i >= nanoEnd-9; i-- {
		if c.text[i] != '9' {
			c.text[i]++
			return
		}
		c.text[i] = '0'
	}
	c.n = len(time.Unix(0, c.last).In(loc).AppendFormat(c.text[:0], timeFormat))
}

// Append adds p, which the container wrote to s, and writes what became whole records. The error is that of write(2);
// nothing is lost by it, see Waiting.
func (f *File) Append(b *Buffer, s Stream, p []byte) error { return f.AppendAt(f.now(), b, s, p) }

// AppendAt is Append at a given time. Its outcome depends on nothing but its arguments and the file's State, so that
// one that was cut short can be repeated by Redo.
func (f *File) AppendAt(now time.Time, b *Buffer, s Stream, p []byte) error {
	f.clock.start(now)
	out := b.b[:0]
	for len(p) > 0 {
		part := f.part[s]
		room := MaxLine - len(part)
		window := p[:min(len(p), room+1)]
		full := 1
		take, skip := bytes.IndexByte(window, '\n'), 1
		if take < 0 {
			if len(p) <= room {
				f.part[s] = append(part, p...)
				break
			}
			full, take, skip = 0, room, 0
		}
		out = append(out, f.clock.text[:f.clock.n]...)
		out = append(out, streamTags[s][full]...)
		out = append(out, part...)
		out = append(out, p[:take]...)
		out = append(out, '\n')
		f.clock.next(now.Location())
		f.part[s] = spare(part)
		p = p[take+skip:]
		if len(out) >= batchSize {
			f.emit(out)
			out = out[:0]
		}
	}
	b.b = out[:0]
	return f.emit(out)
}

// spare returns part's memory for reuse, but gives large buffers back: most containers write short lines.
func spare(part []byte) []byte {
	if cap(part) > 1<<10 {
		return nil
	}
	return part[:0]
}

// End tells that s will bring nothing more; a line without its newline is written as a partial record.
func (f *File) End(b *Buffer, s Stream) error { return f.EndAt(f.now(), b, s) }

// EndAt is End at a given time.
func (f *File) EndAt(now time.Time, b *Buffer, s Stream) error {
	part := f.part[s]
	f.part[s] = nil
	if len(part) == 0 {
		return nil
	}
	f.clock.start(now)
	out := append(b.b[:0], f.clock.text[:f.clock.n]...)
	out = append(out, streamTags[s][0]...)
	out = append(out, part...)
	out = append(out, '\n')
	b.b = out[:0]
	return f.emit(out)
}
