package stdio

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/logs"
)

// fullReads is after how many full reads in a row a pipe is made larger, so that a busy writer needs fewer switches.
const fullReads = 4

// defaultPipe is the size of a new pipe, see pipe(7).
const defaultPipe = 64 << 10

// output is a stream that the container writes.
type output struct {
	watch
	s      *Streams
	stream logs.Stream
	tty    bool
	eof    bool
	full   int8 // full reads in a row; negative: the pipe was enlarged, or can't be
}

func (o *output) ready(uint32) { o.read() }

// read takes what is there, once. It tells whether there may be more.
func (o *output) read() bool {
	buf := o.l.buf
	if o.s.log != nil && o.s.log.Waiting() > 0 {
		buf = buf[:heldReadSize]
	}
	n, err := retryIntr(func() (int, error) { return unix.Read(o.fd, buf) })
	switch {
	case n > 0:
		o.grow(n)
		o.s.deliver(o.stream, buf[:n])
		return true
	case again(err):
	case o.tty && !o.s.stopped:
		// EIO: nobody has the terminal open now. A program may open /dev/console later.
		o.disarm()
		o.l.timers[o] = time.Now().Add(ttyEvery)
	default:
		o.end()
	}
	return false
}

// grow enlarges the pipe of a container that writes faster than it is read.
func (o *output) grow(n int) {
	switch {
	case o.full < 0 || o.tty:
	case n < defaultPipe:
		o.full = 0
	default:
		if o.full++; o.full == fullReads {
			_, _ = unix.FcntlInt(uintptr(o.fd), unix.F_SETPIPE_SZ, readSize) // EPERM over the user's limit
			o.full = -1
		}
	}
}

// expire looks at a terminal again that nobody had open.
func (o *output) expire() { o.resume() }

func (o *output) resume() {
	if !o.eof && o.fd >= 0 && !o.s.blocked {
		_ = o.arm(unix.EPOLLIN)
	}
}

// look is called when the container's process has ended: a terminal without a user has come to its end now.
func (o *output) look() {
	if o.tty && !o.eof && !o.s.blocked {
		delete(o.l.timers, o)
		o.resume()
	}
}

// last reads what is left before the stream is given up, bounded.
func (o *output) last() {
	for got := 0; !o.eof && o.fd >= 0 && !o.s.blocked && got < 8; got++ {
		if !o.read() {
			return
		}
	}
}

func (o *output) endLine() {
	if o.s.log != nil {
		_ = o.s.log.End(o.l.records, o.stream)
		o.s.settleLog()
	}
}

func (o *output) end() {
	if o.eof {
		return
	}
	o.eof = true
	delete(o.l.timers, o)
	o.watch.close()
	o.endLine()
	o.s.outputEnded()
}
