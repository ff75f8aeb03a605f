package monitor

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/monitor/stdio"
)

// attach starts an attachment; the connection serves it from now on.
func (c *conn) attach(f *frame) error {
	a, ct, err := c.startAttach(f)
	f.closeFiles()
	if err != nil {
		return c.fail(f.id, err)
	}
	c.task = &attachTask{f.id, ct, a}
	if err := c.write(kindOK, f.id, nil); err != nil {
		c.cancel()
	}
	return nil
}

// attachTask is an attachment with its client: it ends with the connection.
type attachTask struct {
	id uint64 // of the request
	ct *container
	a  *stdio.Attachment
}

func (t *attachTask) run(c *conn) error {
	for {
		select {
		case <-t.a.Done():
			if err := t.a.Wait(c.ctx); err != nil {
				return c.fail(t.id, err)
			}
			return c.write(kindExited, t.id, execExited{})
		case g := <-c.frames:
			g.closeFiles()
		case <-c.ctx.Done():
			t.a.Close()
			return c.ctx.Err()
		case <-c.frozen:
			return errFrozen
		}
	}
}

func (t *attachTask) save() (savedTask, []int) {
	v, files := t.a.Save()
	st := savedTask{Kind: "attach", ID: t.id, Container: t.ct.id, Attachment: &v}
	var fds []int
	for i, fd := range files {
		if fd >= 0 {
			st.Has[i] = true
			fds = append(fds, fd)
		}
	}
	return st, fds
}

func (c *conn) startAttach(f *frame) (*stdio.Attachment, *container, error) {
	var call stdioCall
	if err := f.decode(&call); err != nil {
		return nil, nil, err
	}
	ct, err := c.s.find(call.ID)
	if err != nil {
		return nil, nil, err
	}
	files, err := call.files(f)
	if err != nil {
		return nil, nil, err
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
			return nil, nil, fmt.Errorf("attach: %w", err)
		}
	}
	a, err := ct.streams.Attach(fds[0], fds[1], fds[2])
	return a, ct, err
}
