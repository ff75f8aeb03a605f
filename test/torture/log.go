package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/seed-9a14075a/cri-server/test/torture/stream"
)

// logReader reads a container's log files, in the order they were written, and compares each stream with what the
// container must have written.
type logReader struct {
	seed  uint64
	last  string // time of the last record
	parts [2][]byte
	lines [2]int64
	tail  bool // stream.Tail was there
	bytes int64
	// handler is the OCI runtime, whose own words are in a container's log if it could not make it: it has its stderr then.
	handler string
}

// checkLog checks the log of a container that has ended: it holds every line whose write(2) has returned, and nothing
// else but the beginning of the one that was being written.
func (w *worker) checkLog(c *container) error {
	count, err := stream.OpenCounter(c.counter(), false)
	if err != nil {
		return err
	}
	defer count.Close()
	r := &logReader{seed: c.seed, handler: c.pod.handler}
	log := filepath.Join(c.pod.dir, c.config.LogPath)
	for i := range c.rotated {
		if err := r.file(fmt.Sprintf("%s.%d", log, i)); err != nil {
			return fmt.Errorf("log of container %s: %w", shortID(c.id), err)
		}
	}
	err = r.file(log)
	if err != nil && !(os.IsNotExist(err) && (c.rotated > 0 || c.id == "")) {
		return fmt.Errorf("log of container %s: %w", shortID(c.id), err)
	}
	if err := r.end(count); err != nil {
		return fmt.Errorf("log of container %s (%d rotations): %w", shortID(c.id), c.rotated, err)
	}
	w.t.tally.lines.Add(r.lines[0] + r.lines[1])
	w.t.tally.bytes.Add(r.bytes)
	w.t.longest(count.Longest.Load())
	return nil
}

func (r *logReader) file(name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	in := bufio.NewReaderSize(f, 64<<10)
	for {
		record, err := in.ReadSlice('\n')
		if errors.Is(err, io.EOF) && len(record) == 0 {
			return nil
		}
		if err == nil {
			err = r.record(record[:len(record)-1])
		}
		if err != nil {
			return fmt.Errorf("%s: record %.60q: %w", filepath.Base(name), record, err)
		}
	}
}

// record takes one record, "TIME STREAM P|F TEXT".
func (r *logReader) record(b []byte) error {
	f := bytes.SplitN(b, []byte(" "), 4)
	if len(f) != 4 || len(f[2]) != 1 {
		return errors.New("is broken")
	}
	which, ok := map[string]int{"stdout": stream.Stdout, "stderr": stream.Stderr}[string(f[1])]
	if !ok {
		return errors.New("is of no stream")
	}
	if string(f[0]) < r.last {
		return fmt.Errorf("is behind one of %s", r.last)
	}
	r.last = string(f[0])
	if r.word(which, f[3]) {
		return nil
	}
	r.bytes += int64(len(f[3]))
	part := append(r.parts[which], f[3]...)
	if f[2][0] == 'P' {
		r.parts[which] = part
		return nil
	}
	part = append(part, '\n')
	if want := stream.AppendLine(nil, r.seed, which, r.lines[which]); !bytes.Equal(part, want) {
		return fmt.Errorf("is %d bytes %.40q instead of line %d, %d bytes %.40q", len(part), part, r.lines[which], len(want), want)
	}
	r.lines[which]++
	r.parts[which] = part[:0]
	r.bytes++
	return nil
}

// word tells whether a record is of an OCI runtime: on stderr, before the container's program has written its first line.
func (r *logReader) word(which int, text []byte) bool {
	if r.handler == "" || which != stream.Stderr || r.lines[which] > 0 || len(r.parts[which]) > 0 {
		return false
	}
	return !bytes.HasPrefix(stream.AppendLine(nil, r.seed, which, 0), text)
}

// end compares what was there with what the program has counted.
func (r *logReader) end(count *stream.Counter) error {
	if e := count.Errno.Load(); e != 0 {
		return fmt.Errorf("a write(2) failed with errno %d", e)
	}
	ending := count.Phase.Load() == stream.Ending
	if ending != (string(r.parts[stream.Stdout]) == stream.Tail) && ending {
		return fmt.Errorf("its end is %.40q instead of %q", r.parts[stream.Stdout], stream.Tail)
	}
	begun := 0
	for which, part := range r.parts {
		counted := count.Lines[which].Load()
		switch {
		case r.lines[which] < counted:
			return fmt.Errorf("stream %d has %d lines, %d were written", which, r.lines[which], counted)
		case r.lines[which] > counted:
			begun++ // a program killed after write(2) and before it counted
		case ending && which == stream.Stdout:
		case len(part) > 0:
			begun++
			line := stream.AppendLine(nil, r.seed, which, r.lines[which])
			if !bytes.HasPrefix(line, part) && string(part) != stream.Tail {
				return fmt.Errorf("stream %d ends with %.40q, which nobody has written", which, part)
			}
		}
		if r.lines[which] > counted+1 {
			return fmt.Errorf("stream %d has %d lines, %d were written", which, r.lines[which], counted)
		}
	}
	if begun > 1 || ending && begun > 0 {
		return fmt.Errorf("has %d lines more than were written", begun)
	}
	return nil
}
