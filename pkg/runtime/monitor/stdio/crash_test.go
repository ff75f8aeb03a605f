package stdio

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/logs"
)

// workerEnv makes the test binary a process that serves one container until it is killed, or the output has ended.
const workerEnv = "CRI_STDIO_TEST_WORKER"

func TestMain(m *testing.M) {
	if os.Getenv(workerEnv) != "" {
		worker()
		return
	}
	testns.Main(m)
}

// The worker's descriptors.
const (
	workerJournal = 3 // to 5
	workerStdout  = 6
	workerLog     = 7
)

func worker() {
	l, err := resumeLoop(slog.Default(), []int{workerJournal, workerJournal + 1, workerJournal + 2})
	if err == nil {
		var s *Streams
		f := NoFiles
		f.Stdout, f.Log = workerStdout, workerLog
		if s, err = l.restore("c", Saved{Slot: 0}, f, true, false, nil); err == nil {
			s.Stop(context.Background(), time.Hour)
			s.Close()
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// lines writes numbered lines of all lengths, some longer than a record, until total bytes are written.
func lines(w io.Writer, seed uint64, total int) error {
	rnd := rand.New(rand.NewPCG(seed, 1))
	for at, n := 0, 0; at < total; n++ {
		line := append(strconv.AppendInt(nil, int64(n), 10), ' ')
		size := rnd.IntN(200)
		switch rnd.IntN(100) {
		case 0:
			size = rnd.IntN(5 * logs.MaxLine)
		case 1:
			size = 0
		}
		line = append(bytes.TrimRight(append(line, bytes.Repeat([]byte{'a' + byte(n%26)}, size)...), " "), '\n')
		for len(line) > 0 { // cut anywhere
			k := min(len(line), 1+rnd.IntN(8000))
			if _, err := w.Write(line[:k]); err != nil {
				return err
			}
			at, line = at+k, line[k:]
		}
	}
	_, err := io.WriteString(w, "no newline at the end")
	return err
}

// Kills at any moment lose no byte, double none, and leave no broken record.
func TestKilled(t *testing.T) {
	total := 256 << 20
	if testing.Short() {
		total = 8 << 20
	}
	if s := os.Getenv("CRI_STDIO_TEST_BYTES"); s != "" {
		total, _ = strconv.Atoi(s)
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	j, err := newJournal()
	if err != nil {
		t.Fatal(err)
	}
	defer j.close()
	dir := t.TempDir()
	log, err := logs.Open(dir, "log")
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	wrote := make(chan error, 1)
	go func() {
		defer w.Close()
		wrote <- lines(w, seed, total)
	}()
	rnd := rand.New(rand.NewPCG(seed, 2))
	kills, window, before := 0, 8*time.Millisecond, int64(0)
	for ended := false; !ended; {
		c := exec.Command("/proc/self/exe")
		c.Env = append(os.Environ(), workerEnv+"=1")
		c.Stderr = os.Stderr
		for _, fd := range []int{j.memfd, j.in, j.out, int(r.Fd()), log.FD()} {
			c.ExtraFiles = append(c.ExtraFiles, dup(t, fd))
		}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		for _, f := range c.ExtraFiles {
			f.Close()
		}
		done := make(chan error, 1)
		go func() { done <- c.Wait() }()
		select {
		case err := <-done:
			if ended = true; err != nil {
				t.Fatal(err)
			}
		case <-time.After(window/4 + time.Duration(rnd.Int64N(int64(window)))):
			_ = c.Process.Kill()
			if err := <-done; err == nil {
				ended = true
			} else {
				kills++
			}
			if now := log.Size(); now > before { // a slow machine needs longer to get anywhere
				before = now
			} else {
				window += window / 4
			}
		}
	}
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
	var want bytes.Buffer
	_ = lines(&want, seed, total)
	got := content(t, filepath.Join(dir, "log"))
	t.Logf("%d kills, %d bytes", kills, len(got))
	if !bytes.Equal(got, want.Bytes()) {
		i := 0
		for i < min(len(got), want.Len()) && got[i] == want.Bytes()[i] {
			i++
		}
		t.Errorf("%d bytes, want %d; they differ from byte %d on", len(got), want.Len(), i)
	}
}

func dup(t *testing.T, fd int) *os.File {
	t.Helper()
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(n), "dup")
}

// content joins the records of a log again; each must be whole, and later than the one before.
func content(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out []byte
	last := ""
	for line := range bytes.Lines(b) {
		f := bytes.SplitN(line, []byte(" "), 4)
		if len(f) != 4 || string(f[1]) != "stdout" || len(f[2]) != 1 || line[len(line)-1] != '\n' {
			t.Fatalf("broken record %.100q", line)
		}
		if at := string(f[0]); at <= last {
			t.Fatalf("time %s after %s", at, last)
		} else {
			last = at
		}
		text := f[3]
		if f[2][0] == 'P' {
			text = text[:len(text)-1]
		}
		out = append(out, text...)
	}
	return out
}
