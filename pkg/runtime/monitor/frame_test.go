package monitor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/testns"
)

// pair returns both ends of a connection.
func pair(t testing.TB) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = c.(*net.UnixConn)
		t.Cleanup(func() { c.Close() })
	}
	return ends[0], ends[1]
}

func openFDs(t testing.TB) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func TestFrame(t *testing.T) {
	a, b := pair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	sent := make(chan error, 1)
	big := target{ID: string(bytes.Repeat([]byte("i"), 3<<20))}
	go func() {
		err := writeFrame(a, kindWait, 77, big, w)
		w.Close()
		sent <- errors.Join(err, writeFrame(a, kindList, 1<<56-1, nil))
	}()
	f, err := readFrame(b, nil)
	if err != nil {
		t.Fatal(err)
	}
	var got target
	if err := f.decode(&got); err != nil || got != big || f.kind != kindWait || f.id != 77 || len(f.files) != 1 {
		t.Errorf("%v %d %d %d files", err, f.kind, f.id, len(f.files))
	}
	if _, err := f.files[0].WriteString("through"); err != nil {
		t.Error(err)
	}
	f.closeFiles()
	buf := make([]byte, 16)
	if n, _ := r.Read(buf); string(buf[:n]) != "through" {
		t.Errorf("pipe gave %q", buf[:n])
	}
	if f, err = readFrame(b, nil); err != nil || f.kind != kindList || f.id != 1<<56-1 || len(f.body) != 0 {
		t.Errorf("%+v %v", f, err)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
}

func TestErrorsCross(t *testing.T) {
	for _, want := range []error{
		errdefs.ErrNotFound, errdefs.ErrAlreadyExists, errdefs.ErrFailedPrecondition, errdefs.ErrInvalidArgument,
		errdefs.ErrNotImplemented, errdefs.ErrPermissionDenied, errdefs.ErrResourceExhausted, errdefs.ErrUnavailable,
		errdefs.ErrInternal, context.DeadlineExceeded, context.Canceled,
	} {
		err := encodeError(fmt.Errorf("stage: %w", want)).decode()
		if !errors.Is(err, want) || err.Error() != "stage: "+want.Error() {
			t.Errorf("%v became %v", want, err)
		}
	}
	if err := encodeError(errors.New("plain")).decode(); !errdefs.IsUnknown(err) || err.Error() != "plain" {
		t.Error(err)
	}
	if err := (wireError{"of the future", "m"}).decode(); !errdefs.IsUnknown(err) {
		t.Error(err)
	}
}

func TestNegotiate(t *testing.T) {
	for _, tt := range []struct {
		in   hello
		want int
	}{{hello{1, 1}, 1}, {hello{1, 9}, 1}, {hello{0, 1}, 1}, {hello{2, 9}, 0}, {hello{0, 0}, 0}, {hello{}, 0}} {
		v, err := tt.in.negotiate()
		if v != tt.want || (err == nil) != (tt.want > 0) {
			t.Errorf("%v: %d %v", tt.in, v, err)
		}
	}
}

// FuzzFrame feeds a reader with anything; it must neither panic nor keep a descriptor.
func FuzzFrame(f *testing.F) {
	good := header{kind: kindList, size: 2, id: 1}.encode()
	f.Add(append(good[:], '{', '}'), uint8(0))
	f.Add(good[:7], uint8(1))
	huge := header{kind: kindCreate, size: maxBody}.encode()
	f.Add(huge[:], uint8(2))
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), uint8(3))
	f.Fuzz(func(t *testing.T, in []byte, files uint8) {
		if len(in) == 0 {
			return
		}
		a, b := pair(t)
		before := openFDs(t)
		var oob []byte
		if n := int(files % 12); n > 0 {
			fds := make([]int, n) // all of them stdin
			oob = unix.UnixRights(fds...)
		}
		_ = a.SetWriteDeadline(time.Now().Add(testns.Patience(time.Second)))
		if _, _, err := a.WriteMsgUnix(in, oob, nil); err != nil {
			return
		}
		a.Close()
		before--
		for {
			fr, err := readFrame(b, nil)
			if err != nil {
				break
			}
			h := header{kind: fr.kind, size: uint32(len(fr.body)), id: fr.id, files: len(fr.files)}.encode()
			if h2, err := decodeHeader(h[:]); err != nil || h2.kind != fr.kind {
				t.Errorf("%v %v", h2, err)
			}
			var req CreateRequest
			if fr.decode(&req) == nil {
				_ = req.check()
			}
			fr.closeFiles()
		}
		if after := openFDs(t); after != before {
			t.Errorf("%d descriptors before, %d after", before, after)
		}
	})
}

// TestGarbage sends what no client would to a server; only that connection suffers.
func TestGarbage(t *testing.T) {
	n := newNode(t)
	greet := func() *net.UnixConn {
		c, err := n.Client.connect(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	raw := func() *net.UnixConn {
		c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: n.socket, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	closedAfter := func(c *net.UnixConn, b []byte) {
		t.Helper()
		defer c.Close()
		_, _ = c.Write(b)
		_ = c.SetReadDeadline(time.Now().Add(testns.Patience(5 * time.Second)))
		var in [256]byte
		for {
			if _, err := c.Read(in[:]); err != nil {
				if errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("still open after %.20q", b)
				}
				return
			}
		}
	}
	list := header{kind: kindList, id: 1}.encode()
	huge := header{kind: kindList, size: maxBody + 1}.encode()
	files := header{kind: kindList, files: 3}.encode()
	closedAfter(raw(), []byte("GET / HTTP/1.1\r\n\r\n"))
	closedAfter(raw(), list[:]) // no hello
	closedAfter(greet(), huge[:])
	closedAfter(greet(), files[:])
	half := greet() // stays half sent meanwhile
	_, _ = half.Write(list[:9])
	defer half.Close()
	c := greet()
	defer c.Close()
	for _, k := range []kind{0, 99, kindOK, kindExecKill} {
		if err := roundTrip(t.Context(), c, k, target{ID: "x"}, nil); err == nil {
			t.Errorf("kind %d was accepted", k)
		}
	}
	if _, err := exchange(t.Context(), c, kindCreate, []int{1}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("bad body: %v", err)
	}
	if _, err := n.List(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestCreateRefuses(t *testing.T) {
	n := newNode(t)
	ok := func() *CreateRequest { return n.request("id", "true") }
	for name, f := range map[string]func(*CreateRequest){
		"no id":            func(r *CreateRequest) { r.ID = "" },
		"path in id":       func(r *CreateRequest) { r.ID = "../x" },
		"upper case":       func(r *CreateRequest) { r.ID = "A" },
		"no spec":          func(r *CreateRequest) { r.Spec = nil },
		"no process":       func(r *CreateRequest) { r.Spec.Process = nil },
		"no program":       func(r *CreateRequest) { r.Spec.Process.Args = nil },
		"relative log dir": func(r *CreateRequest) { r.LogDir = "logs" },
		"log outside":      func(r *CreateRequest) { r.LogPath = "../x" },
	} {
		r := ok()
		f(r)
		if _, err := n.Create(t.Context(), r); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if list, _ := n.List(t.Context()); len(list) > 0 {
		t.Errorf("left: %v", list)
	}
	left, _ := filepath.Glob(filepath.Join(n.dir, "state/containers/*"))
	if len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	n.run(ok()) // the id is free
}
