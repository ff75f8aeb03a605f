package stdio

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/logs"
)

// served is a container whose stdout is written by the test.
func served(t *testing.T, l *Loop) (s *Streams, stdout *os.File, path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "log")
	log, err := logs.Open(filepath.Dir(path), filepath.Base(path))
	if err != nil {
		t.Fatal(err)
	}
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	s, err = l.add(Config{ID: "c", Stdin: -1, Stdout: p[0], Stderr: -1, Terminal: -1, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	return s, os.NewFile(uintptr(p[1]), "stdout"), path
}

// texts are a log's lines without time and stream.
func texts(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSpace(line), " ", 4)
		found = append(found, f[len(f)-1])
	}
	return strings.Join(found, " ")
}

// A process that dies while a log is reopened is followed by one that has what was kept last. So the new file is kept
// before anything is in it: nothing comes behind it in the old one.
func TestReopenedLogIsKeptBeforeItIsWritten(t *testing.T) {
	l, err := newLoop(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s, stdout, path := served(t, l)
	old := path + ".old"
	write := func(text string) {
		if _, err := stdout.WriteString(text + "\n"); err != nil {
			t.Error(err)
		}
	}
	write("before")
	for texts(t, path) != "before" {
		time.Sleep(time.Millisecond) // the loop reads
	}
	if err := os.Rename(path, old); err != nil {
		t.Fatal(err)
	}
	kept := NoFiles
	err = s.ReopenLog(t.Context(), func() {
		write("meanwhile")
		if err := s.ReopenLog(t.Context(), func() { t.Error("kept twice") }); !errdefs.IsUnavailable(err) {
			t.Errorf("a second one: %v", err)
		}
		var err error
		if _, kept, err = s.Save(t.Context()); err != nil {
			t.Error(err)
		}
		if a, b := texts(t, old), texts(t, path); a != "before" || b != "" {
			t.Errorf("while it is kept: %q, %q", a, b)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(kept.Stdout, kept.Log)
	var is, want unix.Stat_t
	if err := errors.Join(unix.Fstat(kept.Log, &is), unix.Stat(path, &want)); err != nil || is.Ino != want.Ino {
		t.Errorf("kept is inode %d, the new log is %d: %v", is.Ino, want.Ino, err)
	}
	write("after")
	stdout.Close()
	s.Stop(t.Context(), time.Minute)
	if a, b := texts(t, old), texts(t, path); a != "before" || b != "meanwhile after" {
		t.Errorf("%q, %q", a, b)
	}
	s.Close()
}

// When the new file can't be opened the old one stays, nothing is kept, and the output goes on.
func TestReopenFails(t *testing.T) {
	l, err := newLoop(slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s, stdout, path := served(t, l)
	old := path + ".old"
	if err := errors.Join(os.Rename(path, old), os.Mkdir(path, 0o755)); err != nil {
		t.Fatal(err)
	}
	if err := s.ReopenLog(t.Context(), func() { t.Error("kept") }); !errdefs.IsInvalidArgument(err) {
		t.Errorf("got %v", err)
	}
	if _, err := stdout.WriteString("on\n"); err != nil {
		t.Fatal(err)
	}
	stdout.Close()
	s.Stop(t.Context(), time.Minute)
	s.Close()
	if got := texts(t, old); got != "on" {
		t.Errorf("%q", got)
	}
}
