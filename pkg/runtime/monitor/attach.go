package monitor

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/monitor/stdio"
)

// attach serves an attachment's connection: it ends with it.
func (c *conn) attach(f *frame) error {
	a, err := c.startAttach(f)
	f.closeFiles()
	if err != nil {
		return c.fail(f, err)
	}
	defer a.Close()
	if err := writeFrame(c.c, kindOK, f.id, nil); err != nil {
		return err
	}
	over := make(chan error, 1)
	go func() { over <- a.Wait(c.ctx) }()
	for {
		select {
		case err := <-over:
			if err != nil {
				return c.fail(f, err)
			}
			return writeFrame(c.c, kindExited, f.id, execExited{})
		case g := <-c.frames:
			g.closeFiles()
		}
	}
}

func (c *conn) startAttach(f *frame) (*stdio.Attachment, error) {
	var call stdioCall
	if err := f.decode(&call); err != nil {
		return nil, err
	}
	ct, err := c.s.find(call.ID)
	if err != nil {
		return nil, err
	}
	files, err := call.files(f)
	if err != nil {
		return nil, err
	}
	fds := [3]int{-1, -1, -1}
	for i, file := range files {
		if file == nil {
			continue
		}
		// A descriptor of our own, which Go's poller knows nothing of.
		if fds[i], err = unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 3); err != nil {
			for _, fd := range fds[:i] {
				if fd >= 0 {
					unix.Close(fd)
				}
			}
			return nil, fmt.Errorf("attach: %w", err)
		}
	}
	return ct.streams.Attach(fds[0], fds[1], fds[2])
}
