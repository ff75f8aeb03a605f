package monitor

import (
	"bytes"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/testns"
)

// manager takes what a process sends to NOTIFY_SOCKET, as systemd does: names, and descriptors under them.
type manager struct {
	t     *testing.T
	c     *net.UnixConn
	path  string
	files map[string]int
}

func newManager(t *testing.T) *manager {
	t.Helper()
	m := &manager{t: t, path: filepath.Join(t.TempDir(), "notify"), files: map[string]int{}}
	var err error
	if m.c, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.path, Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.c.Close()
		for _, fd := range m.files {
			unix.Close(fd)
		}
	})
	return m
}

// take handles what the store has sent.
func (m *manager) take(s *fdStore) {
	m.t.Helper()
	const last = "last"
	s.send("FDSTOREREMOVE=1\nFDNAME="+last, -1)
	b, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	for {
		if err := m.c.SetReadDeadline(time.Now().Add(testns.Patience(10 * time.Second))); err != nil {
			m.t.Fatal(err)
		}
		n, oobn, _, _, err := m.c.ReadMsgUnix(b, oob)
		if err != nil {
			m.t.Fatal(err)
		}
		said := map[string]string{}
		for line := range strings.SplitSeq(string(b[:n]), "\n") {
			k, v, _ := strings.Cut(line, "=")
			said[k] = v
		}
		name := said["FDNAME"]
		if name == "" || len(name) > 255 || strings.ContainsAny(name, ":\n") {
			m.t.Fatalf("message %q", b[:n])
		}
		if name == last {
			return
		}
		if said["FDSTOREREMOVE"] == "1" {
			if fd, ok := m.files[name]; ok {
				unix.Close(fd)
				delete(m.files, name)
			}
			continue
		}
		messages, err := syscall.ParseSocketControlMessage(oob[:oobn])
		if err != nil || len(messages) != 1 || said["FDSTORE"] != "1" || said["FDPOLL"] != "0" {
			m.t.Fatalf("message %q: %v", b[:n], err)
		}
		fds, err := syscall.ParseUnixRights(&messages[0])
		if err != nil || len(fds) != 1 {
			m.t.Fatal(fds, err)
		}
		m.files[name] = fds[0]
	}
}

// given are duplicates of what is kept, as the next process gets them.
func (m *manager) given() map[string]int {
	files := map[string]int{}
	for name, fd := range m.files {
		n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			m.t.Fatal(err)
		}
		files[name] = n
	}
	return files
}

// TestFDStore: the next process gets the last whole picture of each container, and no more.
func TestFDStore(t *testing.T) {
	m := newManager(t)
	s := openFDStore(m.path, slog.Default())
	file := func(name string) int {
		f, err := os.Create(filepath.Join(t.TempDir(), name))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return int(f.Fd())
	}
	one, two, three := file("1"), file("2"), file("3")
	s.put(kept{Journal: true}, []int{one, two, three})
	s.put(kept{ID: "a", Data: []byte(`{"n":1}`)}, []int{one, two})
	s.put(kept{ID: "a.state", Data: []byte(`{"n":1}`)}, []int{three})
	s.put(kept{ID: "b", Data: []byte(`{"n":1}`)}, []int{two})
	s.put(kept{ID: "a", Data: []byte(`{"n":2}`)}, []int{one, three})
	s.put(kept{ID: "b", Forget: true}, nil)
	m.take(s)
	if len(m.files) != 3+3+2 {
		t.Errorf("kept: %v", m.files)
	}
	check := func(s *fdStore, want map[string]string) {
		t.Helper()
		parts := s.recall(m.given())
		got := map[string]string{}
		for _, p := range parts {
			if p.Journal {
				got["journal"] = "ok"
			} else {
				got[p.ID] = string(p.Data)
			}
			if n := map[bool]int{true: 3, false: map[string]int{"a": 2, "a.state": 1}[p.ID]}[p.Journal]; len(p.fds) != n {
				t.Errorf("%s: %d files", p.ID, len(p.fds))
			}
		}
		closeParts(parts)
		for k, v := range want {
			if got[k] != v {
				t.Errorf("%s: %q, want %q", k, got[k], v)
			}
		}
		if len(got) != len(want) {
			t.Errorf("recalled %v", got)
		}
	}
	next := openFDStore(m.path, slog.Default())
	check(next, map[string]string{"journal": "ok", "a": `{"n":2}`, "a.state": `{"n":1}`})
	// It knows what is there: the next picture replaces it.
	next.put(kept{ID: "a", Data: []byte(`{"n":3}`)}, []int{one, three})
	next.put(kept{ID: "a.state", Forget: true}, nil)
	m.take(next)
	if len(m.files) != 3+3 {
		t.Errorf("kept: %v", m.files)
	}
	// A picture whose descriptors are not all there, or that is damaged, does not count.
	for name, fd := range m.files {
		if strings.Contains(name, "/"+statePart) {
			if _, err := unix.Pwrite(fd, bytes.Repeat([]byte{'x'}, 8), 6); err != nil {
				t.Fatal(err)
			}
		}
	}
	check(openFDStore(m.path, slog.Default()), map[string]string{"journal": "ok"})
}
