package streaming

import (
	"bufio"
	"context"
	"io"
	"net"
	"testing"
)

// Whoever reads the end of a connection finds the session ended, whatever else watches it; and nothing is lost that was
// read before the connection was taken over.
func TestReadEndsSession(t *testing.T) {
	for name, buffered := range map[string]bool{"nothing buffered": false, "buffered": true} {
		ours, theirs := net.Pipe()
		go func() {
			_, _ = theirs.Write([]byte("hello world"))
			theirs.Close()
		}()
		before := bufio.NewReader(ours)
		if buffered {
			if _, err := before.Peek(11); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		c := &conn{Conn: ours, end: cancel}
		r := c.reader(before)
		got := make([]byte, 11)
		if _, err := io.ReadFull(r, got); err != nil || string(got) != "hello world" {
			t.Errorf("%s: %q %v", name, got, err)
		}
		if ctx.Err() != nil {
			t.Errorf("%s: ended before its end", name)
		}
		if n, err := r.Read(got); n != 0 || err != io.EOF || ctx.Err() == nil {
			t.Errorf("%s: %d %v, session: %v", name, n, err, ctx.Err())
		}
	}
}
