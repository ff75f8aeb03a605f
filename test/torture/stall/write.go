package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/test/testnode"
)

// lineSize is the length of each line, its newline included; it begins with the line's number.
const lineSize = 100

// written is what the container tells of itself.
type written struct {
	Lines   int64
	Error   string          // of write(2)
	Longest time.Duration   // of one write(2)
	Stalls  []time.Duration // those above 10 ms
	// Asleep is the longest that a write(2) slept, waiting for a reader: without the time for which the machine, being
	// busy, let the writer wait for a processor.
	Asleep time.Duration
	Over   int // how often Asleep was above 50 ms
	Pipe   int // size of the pipe at the end, in bytes
}

// processor is what the calling thread, which must stay the same, has had and has waited for: schedstat in
// proc_pid_schedstat(5), in ns.
type processor struct{ file int }

func (p processor) used() time.Duration {
	b := make([]byte, 64)
	n, err := unix.Pread(p.file, b, 0)
	if err != nil {
		return 0
	}
	f := bytes.Fields(b[:n])
	if len(f) < 2 {
		return 0
	}
	ran, _ := strconv.ParseInt(string(f[0]), 10, 64)
	waited, _ := strconv.ParseInt(string(f[1]), 10, 64)
	return time.Duration(ran + waited)
}

func line(b []byte, n int64) []byte {
	b = append(strconv.AppendInt(b[:0], n, 10), ' ')
	for len(b) < lineSize-1 {
		b = append(b, byte('a'+n%26))
	}
	return append(b, '\n')
}

// write is the program in the container: it writes 16 kB at a time, at a steady rate.
func write(o *options) error {
	const chunk = 160
	pause := time.Duration(chunk * lineSize / (o.rate * 1e6) * float64(time.Second))
	var w written
	var buf, one []byte
	runtime.LockOSThread()
	file, err := unix.Open("/proc/thread-self/schedstat", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	p := processor{file}
	for end, next := time.Now().Add(o.length), time.Now(); time.Now().Before(end); next = next.Add(pause) {
		time.Sleep(time.Until(next))
		buf = buf[:0]
		for i := range int64(chunk) {
			one = line(one, w.Lines+i)
			buf = append(buf, one...)
		}
		used, began := p.used(), time.Now()
		if err := writeAll(buf); err != nil {
			w.Error = err.Error()
			break
		}
		took := time.Since(began)
		asleep := took - (p.used() - used)
		if w.Asleep = max(w.Asleep, asleep); asleep > 50*time.Millisecond {
			w.Over++
		}
		w.Lines += chunk
		w.Longest = max(w.Longest, took)
		if took > 10*time.Millisecond {
			w.Stalls = append(w.Stalls, took)
		}
		if _, err := os.Stat(o.write + ".stop"); err == nil {
			break
		}
	}
	w.Pipe, _ = unix.FcntlInt(1, unix.F_GETPIPE_SZ, 0)
	b, err := json.Marshal(w)
	if err == nil {
		err = os.WriteFile(o.write+".new", b, 0o644)
	}
	if err == nil {
		err = os.Rename(o.write+".new", o.write)
	}
	return err
}

// writeAll writes from this thread, and to its end.
func writeAll(b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(1, b)
		if err != nil && err != unix.EINTR {
			return err
		}
		b = b[max(n, 0):]
	}
	return nil
}

// writer is the container, seen from outside, and its log so far.
type writer struct {
	id, dir string
	rotated int
	lines   int64
	part    []byte
	last    string // time of the last record
}

// ended is closed once the container has told what it wrote.
func (w *writer) ended() <-chan struct{} {
	ch := make(chan struct{})
	if _, err := os.Stat(filepath.Join(w.dir, "result", "written")); err == nil {
		close(ch)
	}
	return ch
}

func (w *writer) log() string { return filepath.Join(w.dir, "logs", "writer.log") }

// rotate moves the log away as kubelet does, and checks and removes it.
func (w *writer) rotate(ctx context.Context, n *testnode.Node) error {
	w.rotated++
	old := fmt.Sprintf("%s.%d", w.log(), w.rotated)
	if err := os.Rename(w.log(), old); err != nil {
		return err
	}
	if _, err := n.Runtime.ReopenContainerLog(ctx, &cri.ReopenContainerLogRequest{ContainerId: w.id}); err != nil {
		select {
		case <-w.ended(): // just now
			return os.Rename(old, w.log())
		default:
			return fmt.Errorf("reopen log: %w", err)
		}
	}
	return w.check(old)
}

// check reads a log to its end: each record must be whole, later than the one before, and the next line.
func (w *writer) check(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer os.Remove(name)
	defer f.Close()
	var want []byte
	for in := bufio.NewReaderSize(f, 1<<20); ; {
		record, err := in.ReadSlice('\n')
		if errors.Is(err, io.EOF) && len(record) == 0 {
			return nil
		}
		f := bytes.SplitN(record, []byte(" "), 4)
		if err != nil || len(f) != 4 || string(f[1]) != "stdout" {
			return fmt.Errorf("%s: broken record %.80q behind line %d: %v", filepath.Base(name), record, w.lines, err)
		}
		if string(f[0]) <= w.last {
			return fmt.Errorf("%s: record of %s behind one of %s", filepath.Base(name), f[0], w.last)
		}
		w.last = string(f[0])
		w.part = append(w.part, f[3]...)
		if f[2][0] == 'P' {
			w.part = w.part[:len(w.part)-1]
			continue
		}
		if want = line(want, w.lines); !bytes.Equal(w.part, want) {
			return fmt.Errorf("%s: %.80q instead of line %d", filepath.Base(name), w.part, w.lines)
		}
		w.part = w.part[:0]
		w.lines++
	}
}

// finish waits for the container's end, and checks its status and the rest of its log.
func (w *writer) finish(ctx context.Context, n *testnode.Node) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		r, err := n.Runtime.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: w.id})
		if err != nil {
			return err
		}
		if s := r.Status; s.State == cri.ContainerState_CONTAINER_EXITED {
			if s.ExitCode != 0 {
				return fmt.Errorf("the writer ended with %d: %s %s", s.ExitCode, s.Reason, s.Message)
			}
			return w.check(w.log())
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the writer does not end: %w", ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// report prints the figures.
func (w *writer) report() error {
	b, err := os.ReadFile(filepath.Join(w.dir, "result", "written"))
	if err != nil {
		return err
	}
	var v written
	if err := json.Unmarshal(b, &v); err != nil {
		return err
	}
	fmt.Printf("written %d bytes, in the log %d, lost %d\n", v.Lines*lineSize, w.lines*lineSize, (v.Lines-w.lines)*lineSize)
	fmt.Printf("longest write(2): %v; above 10 ms: %d", v.Longest.Round(10*time.Microsecond), len(v.Stalls))
	over := 0
	for _, s := range v.Stalls {
		if s > 50*time.Millisecond {
			over++
		}
	}
	fmt.Printf(", above 50 ms: %d\n", over)
	fmt.Printf("longest sleep in write(2): %v; above 50 ms: %d; the pipe holds %d bytes\n", v.Asleep.Round(10*time.Microsecond), v.Over, v.Pipe)
	if v.Error != "" || v.Lines != w.lines {
		return fmt.Errorf("wrote %d lines, found %d %s", v.Lines, w.lines, v.Error)
	}
	return nil
}
