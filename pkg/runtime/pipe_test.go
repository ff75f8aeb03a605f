package runtime

import (
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// A program's stdio must be blocking: with O_NONBLOCK most programs lose what they write to a full pipe.
func TestPipesBlock(t *testing.T) {
	var c capture
	if err := c.open(&budget{left: 1}); err != nil {
		t.Fatal(err)
	}
	defer c.close()
	var p plumbing
	in, err := p.input()
	if err != nil {
		t.Fatal(err)
	}
	out, err := p.output(io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	defer p.close(false)
	for name, f := range map[string]*os.File{"capture": c.w, "input": in, "output": out} {
		raw, err := f.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		if err := raw.Control(func(fd uintptr) {
			if flags, err := unix.FcntlInt(fd, unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK != 0 {
				t.Errorf("%s: flags %x, %v", name, flags, err)
			}
		}); err != nil {
			t.Fatal(err)
		}
	}
}
