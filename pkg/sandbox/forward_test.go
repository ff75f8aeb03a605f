package sandbox

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// duplex is a client's stream: two pipes, of which Close ends one, as in SPDY.
type duplex struct {
	io.Reader
	io.WriteCloser
	reset func() error
}

func (d duplex) Reset() error { return d.reset() }

func newDuplex() (ours, theirs duplex) {
	r1, w1 := io.Pipe()
	r2, w2 := io.Pipe()
	return duplex{r1, w2, func() error { return r1.CloseWithError(io.EOF) }}, duplex{r2, w1, nil}
}

// listen serves one connection on the loopback interface.
func listen(t *testing.T, address string, serve func(*net.TCPConn)) int32 {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Skipf("no %s on this machine: %v", address, err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		if c, err := l.Accept(); err == nil {
			serve(c.(*net.TCPConn))
			c.Close()
		}
	}()
	return int32(l.Addr().(*net.TCPAddr).Port)
}

// random is n bytes that only its seed knows, and their sum.
func random(seed uint64, n int64) (io.Reader, hash.Hash) {
	sum := sha256.New()
	var key [32]byte
	key[0] = byte(seed)
	return io.TeeReader(io.LimitReader(rand.NewChaCha8(key), n), sum), sum
}

// Bytes go both ways at once, and each way can end alone.
func TestForward(t *testing.T) {
	const size = 200 << 20
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		t.Run(address, func(t *testing.T) {
			got, up := sha256.New(), make(chan struct{})
			fromPod, podSum := random(1, size)
			port := listen(t, address, func(c *net.TCPConn) {
				go func() { _, _ = io.Copy(got, c); close(up) }()
				_, _ = io.Copy(c, fromPod)
				_ = c.CloseWrite()
				<-up
			})
			ours, theirs := newDuplex()
			done := make(chan error, 1)
			go func() { done <- Forward(t.Context(), &Sandbox{}, port, ours) }()
			fromClient, clientSum := random(2, size+12345)
			go func() { _, _ = io.Copy(theirs, fromClient); theirs.Close() }()
			down := sha256.New()
			if _, err := io.Copy(down, theirs); err != nil {
				t.Error(err)
			}
			if err := <-done; err != nil {
				t.Error(err)
			}
			<-up
			if !bytes.Equal(down.Sum(nil), podSum.Sum(nil)) || !bytes.Equal(got.Sum(nil), clientSum.Sum(nil)) {
				t.Error("not what was sent")
			}
		})
	}
}

func TestForwardEnds(t *testing.T) {
	t.Run("nobody listens", func(t *testing.T) {
		ours, theirs := newDuplex()
		go func() { _, _ = io.Copy(io.Discard, theirs) }()
		if err := Forward(t.Context(), &Sandbox{ID: "x"}, 1, ours); err == nil {
			t.Error("no error")
		}
	})
	t.Run("no port", func(t *testing.T) {
		for _, port := range []int32{0, -1, 65536} {
			ours, _ := newDuplex()
			if err := Forward(t.Context(), &Sandbox{}, port, ours); !errors.Is(err, errdefs.ErrInvalidArgument) {
				t.Errorf("port %d: %v", port, err)
			}
		}
	})
	t.Run("the client goes", func(t *testing.T) {
		ended := make(chan struct{})
		port := listen(t, "127.0.0.1:0", func(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c); close(ended) })
		ours, theirs := newDuplex()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- Forward(ctx, &Sandbox{}, port, ours) }()
		if _, err := theirs.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		cancel()
		for what, c := range map[string]<-chan struct{}{"the pod's connection": ended, "Forward": wrap(done)} {
			select {
			case <-c:
			case <-time.After(20 * time.Second):
				t.Fatalf("%s goes on", what)
			}
		}
	})
	t.Run("the pod closes at once", func(t *testing.T) {
		port := listen(t, "127.0.0.1:0", func(c *net.TCPConn) { _, _ = c.Write([]byte("bye")) })
		ours, theirs := newDuplex()
		done := make(chan error, 1)
		go func() { done <- Forward(t.Context(), &Sandbox{}, port, ours) }()
		if b, err := io.ReadAll(theirs); string(b) != "bye" || err != nil {
			t.Errorf("%q %v", b, err)
		}
		theirs.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func wrap(c <-chan error) <-chan struct{} {
	done := make(chan struct{})
	go func() { <-c; close(done) }()
	return done
}
