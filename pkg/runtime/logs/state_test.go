package logs

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A batch that was cut short after any number of its bytes is completed exactly by Redo.
func TestRedo(t *testing.T) {
	input := bytes.Repeat([]byte("a line\nand another one\n\nlast without an en"), 20)
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	whole := record(t, filepath.Join(t.TempDir(), "whole"), -1, at, input)
	for cut := 0; cut <= len(whole); cut += 1 + cut/7 {
		t.Run(fmt.Sprint(cut), func(t *testing.T) {
			got := record(t, filepath.Join(t.TempDir(), "x"), cut, at, input)
			if !bytes.Equal(got, whole) {
				t.Errorf("%d bytes, want %d:\n%s", len(got), len(whole), got)
			}
		})
	}
}

// record writes input behind an earlier line; with cut ≥ 0 the writer dies after so many bytes of the whole file.
func record(t *testing.T, path string, cut int, at time.Time, input []byte) []byte {
	t.Helper()
	dir, name := filepath.Split(path)
	f, err := Open(dir, name)
	if err != nil {
		t.Fatal(err)
	}
	b := NewBuffer()
	if err := f.AppendAt(at, b, Stdout, []byte("before\nbeg")); err != nil {
		t.Fatal(err)
	}
	line, err := json.Marshal(f.State())
	if err != nil {
		t.Fatal(err)
	}
	size := f.Size()
	if err := f.AppendAt(at, b, Stdout, input); err != nil {
		t.Fatal(err)
	}
	if err := f.EndAt(at, b, Stdout); err != nil {
		t.Fatal(err)
	}
	if cut < 0 || int64(cut) < size {
		cut = -1
	}
	if cut >= 0 {
		if err := unix.Ftruncate(f.fd, int64(cut)); err != nil {
			t.Fatal(err)
		}
		var st State
		if err := json.Unmarshal(line, &st); err != nil {
			t.Fatal(err)
		}
		f = Resume(f.fd, st)
		if err := f.Redo(size, func() error {
			if err := f.AppendAt(at, b, Stdout, input); err != nil {
				return err
			}
			return f.EndAt(at, b, Stdout)
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// Records that waited for the file system are written by the next process.
func TestResumeHeld(t *testing.T) {
	dir := t.TempDir()
	f, err := Open(dir, "log")
	if err != nil {
		t.Fatal(err)
	}
	b := NewBuffer()
	f.write = func(fd int, p []byte) (int, error) {
		n, _ := unix.Write(fd, p[:min(len(p), 10)])
		return n, unix.ENOSPC
	}
	if err := f.Append(b, Stdout, []byte("one\ntwo\n")); err == nil {
		t.Fatal("no error")
	}
	g := Resume(f.FD(), f.State())
	if g.Waiting() == 0 || g.Err() == nil {
		t.Errorf("waiting %d, %v", g.Waiting(), g.Err())
	}
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	got, _ := os.ReadFile(filepath.Join(dir, "log"))
	if bytes.Count(got, []byte("\n")) != 2 || !bytes.Contains(got, []byte("stdout F two\n")) {
		t.Errorf("%s", got)
	}
}
