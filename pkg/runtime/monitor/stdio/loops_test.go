package stdio

import (
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/logs"
)

// device mounts a file system of its own at a new directory.
func device(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("test", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// writer is a container that logs to dir; its stdout is the test's.
func writer(t *testing.T, g *Loops, id, dir string) (s *Streams, stdout *os.File) {
	t.Helper()
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	c := Config{ID: id, Stdin: -1, Stdout: p[0], Stderr: -1, Terminal: -1}
	if dir != "" {
		var err error
		if c.Log, err = logs.Open(dir, id+".log"); err != nil {
			t.Fatal(err)
		}
	}
	s, err := g.Add(c)
	if err != nil {
		t.Fatal(err)
	}
	return s, os.NewFile(uintptr(p[1]), "stdout")
}

func await(t *testing.T, dir, id, want string) {
	t.Helper()
	for got := ""; got != want; got = texts(t, filepath.Join(dir, id+".log")) {
		time.Sleep(time.Millisecond)
	}
}

// While one file system does not answer, the containers that log to others, or nowhere, go on; nothing is lost.
func TestLoopsAreApart(t *testing.T) {
	testns.Root(t)
	was := answerTime
	answerTime = 50 * time.Millisecond
	t.Cleanup(func() { answerTime = was })
	told := map[int]int{}
	g, err := New(slog.New(slog.DiscardHandler), func(n int, files []int) { told[n] = len(files) })
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	hanging, fine := device(t), device(t)
	s, in := writer(t, g, "stuck", hanging)
	s2, in2 := writer(t, g, "goes-on", fine)
	s3, in3 := writer(t, g, "no-log", "")
	s4, in4 := writer(t, g, "beside", fine)
	if s.l == s2.l || s3.l == s.l || s3.l == s2.l || s2.l != s4.l || !maps.Equal(told, map[int]int{1: 3, 2: 3}) {
		t.Fatalf("%p %p %p %p, told %v", s.l, s2.l, s3.l, s4.l, told)
	}
	again := make(chan struct{})
	s.l.serving.Store(s)
	s.l.post(func() { <-again }) // as a write(2) that hangs
	fmt.Fprintln(in, "later")
	fmt.Fprintln(in2, "now")
	await(t, fine, "goes-on", "now")
	if _, err := s3.Attach(-1, -1, -1); err != nil {
		t.Errorf("attach: %v", err)
	}
	if resume, err := g.Pause(); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "stuck.log") {
		t.Errorf("pause: %v, %v", resume != nil, err)
	}
	if _, _, err := s2.Save(t.Context()); err != nil { // the others were not left paused
		t.Errorf("save: %v", err)
	}
	close(again)
	await(t, hanging, "stuck", "later")
	for i, s := range []*Streams{s, s2, s3, s4} {
		[]*os.File{in, in2, in3, in4}[i].Close()
		s.Stop(t.Context(), time.Minute)
		s.Close()
		s.Close()
		if n := s.l.users.Load(); n != []int32{0, 1, 0, 0}[i] {
			t.Errorf("%d: %d users", i, n)
		}
	}
}

// A Loop without a container serves the next file system; numbers and slots stay apart.
func TestLoopsAreUsedAgain(t *testing.T) {
	testns.Root(t)
	var told []int
	g, err := New(slog.New(slog.DiscardHandler), func(n int, _ []int) { told = append(told, n) })
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	for range 3 {
		var ends []func()
		for range 2 {
			s, in := writer(t, g, "c", device(t))
			if v, _, err := s.Save(t.Context()); err != nil || v.Slot/maxSlots != s.l.number {
				t.Errorf("%+v %v", v, err)
			}
			ends = append(ends, func() { in.Close(); s.Close() })
		}
		for _, end := range ends {
			end()
		}
	}
	if !slices.Equal(told, []int{1, 2}) || len(g.loops) != 3 {
		t.Errorf("%v, %d loops", told, len(g.loops))
	}
}

// What a process leaves that dies, its successor goes on with, in each file system by its own journal.
func TestLoopsResume(t *testing.T) {
	testns.Root(t)
	log := slog.New(slog.DiscardHandler)
	g, err := New(log, nil)
	if err != nil {
		t.Fatal(err)
	}
	dirs := []string{device(t), device(t)}
	type left struct {
		v Saved
		f Files
	}
	var all []left
	var ins []*os.File
	for _, dir := range dirs {
		s, in := writer(t, g, "c", dir)
		fmt.Fprint(in, "line\nits ")
		await(t, dir, "c", "line")
		var l left
		for l.v.Slot/maxSlots == 0 || s.lengthOfPart(t) == 0 {
			if l.v, l.f, err = s.Save(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		all, ins = append(all, l), append(ins, in)
	}
	journals := g.Journals()
	for n, files := range journals {
		for i, fd := range files {
			if journals[n][i], err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3); err != nil {
				t.Fatal(err)
			}
		}
	}
	g.Close() // keeps its descriptors, as after a death
	next, err := New(log, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	for n, files := range journals {
		if err := next.Adopt(n, files); err != nil {
			t.Error(err)
		}
	}
	if err := next.Adopt(1, nil); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("twice: %v", err)
	}
	if err := next.Adopt(MaxLoops, nil); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("too many: %v", err)
	}
	for i, l := range all {
		h, err := logs.Handle(l.f.Log) // as keepers have it where close(2) may hang
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(l.f.Log)
		l.f.Log = h
		s, err := next.Restore("c", l.v, l.f, true, nil)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(ins[i], "end")
		await(t, dirs[i], "c", "line its end")
		again, in := writer(t, next, "d", dirs[i])
		if again.l != s.l {
			t.Errorf("%d: a file system has two loops", i)
		}
		in.Close()
		again.Close()
		ins[i].Close()
		s.Stop(t.Context(), time.Minute)
		s.Close()
	}
}

// What is written while an upgrade restores a container's streams and then its attachments comes to these too.
func TestNothingIsReadBeforeBegin(t *testing.T) {
	testns.Root(t)
	log := slog.New(slog.DiscardHandler)
	g, err := New(log, nil)
	if err != nil {
		t.Fatal(err)
	}
	dir := device(t)
	s, in := writer(t, g, "c", dir)
	defer in.Close()
	v, f, err := s.Save(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	journals := g.Journals()
	for n, files := range journals {
		for i, fd := range files {
			if journals[n][i], err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3); err != nil {
				t.Fatal(err)
			}
		}
	}
	g.Close()
	next, err := Resume(log, nil, journals)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	if s, err = next.Restore("c", v, f, false, nil); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(in, "meanwhile")
	if err := s.l.call(t.Context(), func() error { return nil }); err != nil { // it would have been read by now, or with this
		t.Fatal(err)
	}
	var out [2]int
	if err := unix.Pipe2(out[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	shown := os.NewFile(uintptr(out[0]), "attachment")
	defer shown.Close()
	a, err := s.Reattach(SavedAttachment{Live: true}, [3]int{-1, out[1], -1})
	if err != nil {
		t.Fatal(err)
	}
	next.Begin()
	b := make([]byte, 100)
	if n, err := shown.Read(b); string(b[:n]) != "meanwhile\n" {
		t.Errorf("%q, %v", b[:n], err)
	}
	await(t, dir, "c", "meanwhile")
	a.Close()
	in.Close()
	s.Stop(t.Context(), time.Minute)
	s.Close()
}

// The file system of a log does not answer while its container is restored: others, and the container itself, are not held up
// by that, and its output comes when it does.
func TestRestoreWhileStuck(t *testing.T) {
	testns.Root(t)
	was := answerTime
	answerTime = 20 * time.Millisecond
	t.Cleanup(func() { answerTime = was })
	log := slog.New(slog.DiscardHandler)
	g, err := New(log, nil)
	if err != nil {
		t.Fatal(err)
	}
	dirs := []string{device(t), device(t)}
	var all []Saved
	var files []Files
	var ins []*os.File
	for i, dir := range dirs {
		s, in := writer(t, g, "c", dir)
		s.SetMark(uint32(i + 7))
		fmt.Fprintln(in, "line")
		await(t, dir, "c", "line")
		v, f, err := s.Save(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		all, files, ins = append(all, v), append(files, f), append(ins, in)
	}
	journals := g.Journals()
	for n, list := range journals {
		for i, fd := range list {
			if journals[n][i], err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3); err != nil {
				t.Fatal(err)
			}
		}
	}
	g.Close()
	next, err := Resume(log, nil, journals)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Close()
	// Another's log, in a file system that is not among those of before, meanwhile: it gets none of theirs.
	between, in := writer(t, next, "b", device(t))
	if between.l == next.loops[1] || between.l == next.loops[2] {
		t.Error("a loop whose containers are not there yet serves another file system")
	}
	in.Close()
	between.Close()
	next.Begin()
	again := make(chan struct{})
	next.loops[1].post(func() { <-again }) // as an open(2) that hangs
	var restored []*Streams
	for i := range all {
		s, err := next.Restore("c", all[i], files[i], true, nil)
		if err != nil {
			t.Fatalf("%d: %v", i, err)
		}
		if m := s.Mark(); m != uint32(i+7) {
			t.Errorf("%d: mark %d", i, m)
		}
		fmt.Fprintln(ins[i], "more")
		restored = append(restored, s)
	}
	await(t, dirs[1], "c", "line more")
	if _, _, err := restored[0].Save(t.Context()); !errdefs.IsUnavailable(err) {
		t.Errorf("saved: %v", err)
	}
	close(again)
	await(t, dirs[0], "c", "line more")
	for i, s := range restored {
		ins[i].Close()
		s.Stop(t.Context(), time.Minute)
		s.Close()
		if n := s.l.users.Load(); n != 0 {
			t.Errorf("%d: %d users", i, n)
		}
	}
}

// lengthOfPart is that of the line whose newline has not come.
func (s *Streams) lengthOfPart(t *testing.T) (n int) {
	t.Helper()
	if err := s.l.call(t.Context(), func() error { n = len(s.log.Part(logs.Stdout)); return nil }); err != nil {
		t.Fatal(err)
	}
	return n
}
