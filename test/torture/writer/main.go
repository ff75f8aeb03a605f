// Command writer is the program in the containers of the torture run; see package stream.
//
//	writer SEED STEPS PAUSE CODE COUNTER
//
// It takes STEPS steps (0: until SIGTERM), one line each, PAUSE µs apart, writes stream.Tail, and exits with CODE.
package main

import (
	"errors"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/test/torture/stream"
)

// broken is the exit status of a program that could not write.
const broken = 99

func main() {
	var n [4]int64
	if len(os.Args) != 6 {
		os.Exit(2)
	}
	for i := range n {
		v, err := strconv.ParseInt(os.Args[i+1], 10, 64)
		if err != nil {
			os.Exit(2)
		}
		n[i] = v
	}
	count, err := stream.OpenCounter(os.Args[5], true)
	if err != nil {
		os.Exit(2)
	}
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	count.Phase.Store(stream.Writing)
	seed, steps, pause := uint64(n[0]), n[1], time.Duration(n[2])*time.Microsecond
	var b []byte
	for step, over := int64(0), false; !over && (steps == 0 || step < steps); step++ {
		which := stream.Which(seed, step)
		line := count.Lines[which].Load()
		b = stream.AppendLine(b[:0], seed, which, line)
		write(count, which+1, b)
		count.Lines[which].Store(line + 1)
		select {
		case <-term:
			over = true
		case <-time.After(pause):
		}
	}
	write(count, 1, []byte(stream.Tail))
	count.Phase.Store(stream.Ending)
	os.Exit(int(n[3]))
}

func write(count *stream.Counter, fd int, b []byte) {
	for len(b) > 0 {
		began := time.Now()
		n, err := unix.Write(fd, b)
		if took := int64(time.Since(began)); took > count.Longest.Load() {
			count.Longest.Store(took)
		}
		var errno syscall.Errno
		if errors.As(err, &errno) && errno != unix.EINTR {
			count.Errno.Store(int64(errno))
			os.Exit(broken)
		}
		b = b[max(n, 0):]
	}
}
