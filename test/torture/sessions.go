package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/test/torture/stream"
)

// session is an exec by way of the streaming server, with crictl as the client: what goes in comes back, by both streams. It
// is repeated until it comes to its end, which a kill of either program cuts short.
func (w *worker) session(ctx context.Context, c *container) error {
	in := []byte(strings.Repeat(strconv.FormatUint(w.random.Uint64(), 36)+"\n", 1+w.random.IntN(4000)))
	token := fmt.Sprint(w.random.Uint64())
	err := w.call(ctx, "Exec", func(ctx context.Context) error {
		var stdout, stderr bytes.Buffer
		x := w.t.node.Crictl(ctx, "exec", "-i", c.id, "sh", "-c", "cat; echo "+token+" >&2")
		x.Stdin, x.Stdout, x.Stderr = bytes.NewReader(in), &stdout, &stderr
		x.WaitDelay = time.Second
		if err := x.Run(); err != nil {
			return fmt.Errorf("%w: %s", err, oneLine(stderr.String()))
		}
		if bytes.Equal(stdout.Bytes(), in) && stderr.String() == token+"\n" {
			return nil
		}
		// A connection that ends without a word, as it does when cri-server is killed, is success to crictl.
		if w.t.tally.cut.Add(1); !bytes.HasPrefix(in, stdout.Bytes()) || !bytes.HasPrefix([]byte(token+"\n"), withoutWords(stderr.Bytes())) {
			w.t.fail("exec session in %s: %d bytes instead of %d, %q instead of %s", shortID(c.id), stdout.Len(), len(in), stderr.String(), token)
		}
		return errors.New("cut short")
	})
	w.t.tally.sessions.Add(1)
	return err
}

// attach looks at a container's output for a while: what comes are its lines, each of both streams behind the one before.
func (w *worker) attach(ctx context.Context, c *container) error {
	count, err := stream.OpenCounter(c.counter(), false)
	if err != nil {
		return err
	}
	defer count.Close()
	from := [2]int64{count.Lines[0].Load(), count.Lines[1].Load()}
	var out [2]bytes.Buffer
	limited, cancel := context.WithTimeout(ctx, time.Duration(100+w.random.IntN(500))*time.Millisecond)
	defer cancel()
	x := w.t.node.Crictl(limited, "attach", c.id)
	x.Stdout, x.Stderr = &out[stream.Stdout], &out[stream.Stderr]
	x.Cancel = func() error { return x.Process.Signal(unix.SIGINT) }
	x.WaitDelay = 5 * time.Second
	if err := x.Run(); err != nil && errors.Is(err, exec.ErrWaitDelay) {
		w.t.trace("worker %d: attach: %v", w.n, err)
	}
	w.t.tally.attached.Add(1)
	for which := range out {
		b := out[which].Bytes()
		w.t.tally.attachedBytes.Add(int64(len(b)))
		if which == stream.Stderr {
			b = withoutWords(b)
		}
		if err := consecutive(b, c.seed, which, from[which], count.Lines[which].Load()); err != nil {
			return fmt.Errorf("attached to %s, stream %d: %w", shortID(c.id), which, err)
		}
	}
	return nil
}

// words matches the beginning of crictl's own complaints: those of logrus and of klog.
var words = regexp.MustCompile(`time="|[IWE][01][0-9][0-3][0-9] [0-9]{2}:[0-9]{2}:[0-9]{2}\.`)

// withoutWords cuts off crictl's own complaints, which end a session's stderr.
func withoutWords(b []byte) []byte {
	if at := words.FindIndex(b); at != nil {
		return b[:at[0]]
	}
	return b
}

// backlog is how many lines may wait in a container's pipe.
const backlog = 20000

// consecutive tells whether b is a piece of a stream that was being written while it went from one line to another.
func consecutive(b []byte, seed uint64, which int, from, to int64) error {
	first := bytes.IndexByte(b, '\n') + 1 // it may begin anywhere in a line
	b = b[first:]
	if last := bytes.LastIndexByte(b, '\n') + 1; last > 0 {
		b = b[:last]
	} else {
		return nil
	}
	for n := max(0, from-backlog); n <= to; n++ {
		if at := matches(b, seed, which, n); at == len(b) {
			return nil
		}
	}
	return fmt.Errorf("%d bytes %.60q are not what was written between lines %d and %d", len(b), b, from, to)
}

// matches is how much of b are whole lines from line n on.
func matches(b []byte, seed uint64, which int, n int64) (at int) {
	var line []byte
	for ; at < len(b); n++ {
		line = stream.AppendLine(line[:0], seed, which, n)
		if !bytes.HasPrefix(b[at:], line) {
			return at
		}
		at += len(line)
	}
	return at
}
