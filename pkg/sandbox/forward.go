package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/errdefs"

	"github.com/seed-9a14075a/cri-server/pkg/network/netns"
)

// lingerTimeout is how long a client may be silent after the pod has closed its side.
const lingerTimeout = 10 * time.Second

// dialTimeout bounds connecting to a port on a pod's loopback interface.
const dialTimeout = 10 * time.Second

// Forward connects to a TCP port on the loopback interface of the pod (IPv4, else IPv6) and copies both ways until both
// sides are done or ctx ends. It closes stream, which must make a Read of it return (or Reset, where it has that).
func Forward(ctx context.Context, sb *Sandbox, port int32, stream io.ReadWriteCloser) error {
	defer stream.Close()
	if port < 1 || port > 65535 {
		return fmt.Errorf("port %d: %w", port, errdefs.ErrInvalidArgument)
	}
	conn, err := dialPod(ctx, sb, port)
	if err != nil {
		return fmt.Errorf("port %d of sandbox %s: %w", port, sb.ID, err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close(); stream.Close() })
	defer stop()

	var moved atomic.Int64 // from the client to the pod
	toPod := make(chan struct{})
	go func() {
		defer close(toPod)
		_, _ = io.Copy(io.MultiWriter(conn, counter{&moved}), stream)
		// The client has said all; the pod may still answer.
		if t, ok := conn.(*net.TCPConn); ok {
			_ = t.CloseWrite()
		}
	}()
	_, err = io.Copy(stream, conn)
	// Nothing more will come from the pod: tell the client (Close ends our direction of a stream only), and let it say
	// its last words, for as long as it does say something.
	stream.Close()
	for before, quiet := moved.Load(), false; !quiet && ctx.Err() == nil; {
		select {
		case <-toPod:
			quiet = true
		case <-time.After(lingerTimeout):
			quiet = before == moved.Load()
			before = moved.Load()
		case <-ctx.Done():
		}
	}
	conn.Close()
	if r, ok := stream.(interface{ Reset() error }); ok {
		_ = r.Reset() // both directions
	}
	<-toPod
	if err != nil && !errors.Is(err, net.ErrClosed) && !errors.Is(err, syscall.ECONNRESET) {
		return fmt.Errorf("port %d of sandbox %s: %w", port, sb.ID, err)
	}
	return nil
}

// counter counts what is written.
type counter struct{ n *atomic.Int64 }

func (c counter) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return len(p), nil
}

// dialPod opens the socket inside the pod's network namespace; a socket stays in the namespace it was made in.
func dialPod(ctx context.Context, sb *Sandbox, port int32) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var errs []error
	for _, host := range []string{"127.0.0.1", "::1"} {
		var conn net.Conn
		dial := func() (err error) {
			var d net.Dialer // a literal address is dialed on the calling thread
			conn, err = d.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
			return err
		}
		var err error
		if sb.NetNS == "" {
			err = dial()
		} else {
			err = netns.Do(sb.NetNS, dial)
		}
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}
