package stdio

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/logs"
)

// busyRate is how many bytes a container writes within a second before its pipe is made larger: so that it needs fewer
// switches, and does not notice when nobody reads for a moment because this process is replaced.
const busyRate = 1 << 20

// output is a stream that the container writes.
type output struct {
	watch
	s      *Streams
	stream logs.Stream
	tty    bool
	eof    bool
	direct bool  // it can't be spliced from
	since  int64 // when sum began, in ns since 1970
	sum    int   // bytes since then; negative: the pipe was enlarged, or can't be
}

func (o *output) ready(uint32) { o.read() }

// read takes what is there, once. It tells whether there may be more.
func (o *output) read() bool {
	o.l.serving.Store(o.s)
	p, now, err := o.take()
	switch {
	case len(p) > 0:
		o.grow(len(p), now)
		o.s.deliver(now, o.stream, p)
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

// take moves what is there into the buffer, by way of the journal if it is for a log; now is the time that its records
// get. Whoever gets something must deliver it.
func (o *output) take() (p []byte, now time.Time, err error) {
	limit := readSize
	if o.s.log != nil && o.s.log.Waiting() > 0 {
		limit = heldReadSize
	}
	j := o.l.journal
	journaled := o.s.log != nil && o.s.slot >= 0
	if journaled && !o.direct {
		now = j.begin(opAppend, o.s.slot, o.stream, o.s.log)
		n, err := retryIntr(func() (int, error) {
			n, err := unix.Splice(o.fd, nil, j.in, nil, limit, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
			return int(n), err
		})
		if n > 0 {
			j.h.n.Store(int64(n))
			if err := j.fill(0, n); err != nil { // the pipe is ours alone: it can't be
				o.l.log.Error("output is lost", "container", o.s.id, "bytes", n, "err", err)
				j.abandon()
				return nil, now, unix.EAGAIN
			}
			return o.l.buf[:n], now, nil
		}
		j.abandon()
		if err != unix.EINVAL { // a terminal of a kernel that can't splice from it
			return nil, now, err
		}
		o.direct = true
	}
	if journaled {
		now = j.begin(opDirect, o.s.slot, o.stream, o.s.log)
	}
	n, err := retryIntr(func() (int, error) { return unix.Read(o.fd, o.l.buf[:limit]) })
	if n <= 0 {
		if journaled {
			j.abandon()
		}
		return nil, now, err
	}
	if journaled {
		j.h.n.Store(int64(n))
	} else if o.s.log != nil {
		now = o.s.log.Now()
	}
	return o.l.buf[:n], now, nil
}

// grow enlarges the pipe of a container that writes much. now is zero for output that is thrown away.
func (o *output) grow(n int, now time.Time) {
	if o.sum < 0 || o.tty || now.IsZero() {
		return
	}
	if at := now.UnixNano(); at-o.since > int64(time.Second) {
		o.since, o.sum = at, 0
	}
	if o.sum += n; o.sum >= busyRate {
		_, _ = unix.FcntlInt(uintptr(o.fd), unix.F_SETPIPE_SZ, busyPipe) // EPERM over the user's limit
		o.sum = -1                                                       // once
	}
}

// expire looks at a terminal again that nobody had open.
func (o *output) expire() { o.resume() }

func (o *output) resume() {
	if !o.eof && o.fd >= 0 && !o.s.blocked && !o.s.held {
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
	log, j, slot := o.s.log, o.l.journal, o.s.slot
	switch {
	case log == nil || len(log.Part(o.stream)) == 0:
		return
	case slot < 0:
		_ = log.End(o.l.records, o.stream)
	default:
		_ = log.EndAt(j.begin(opEnd, slot, o.stream, log), o.l.records, o.stream)
		j.commit(slot, o.stream, log)
	}
	o.s.settleLog()
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
