package runtime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/monitor"
)

// plumbing copies between a client's streams and the pipes of a session.
type plumbing struct {
	theirs []*os.File // the other side's ends, closed once it has them
	ours   []*os.File
	stdin  *os.File // our end of the session's stdin
	out    sync.WaitGroup
}

// input gives the session a stdin, which feed fills.
func (p *plumbing) input() (*os.File, error) {
	theirs, ours, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	blocking(theirs)
	p.theirs, p.ours, p.stdin = append(p.theirs, theirs), append(p.ours, ours), ours
	return theirs, nil
}

// output gives the session a stdout or stderr that is copied to w until it ends.
func (p *plumbing) output(w io.Writer) (*os.File, error) {
	ours, theirs, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	blocking(theirs)
	p.theirs, p.ours = append(p.theirs, theirs), append(p.ours, ours)
	p.copyOut(w, ours)
	return theirs, nil
}

func (p *plumbing) copyOut(w io.Writer, r *os.File) {
	p.out.Add(1)
	go func() {
		defer p.out.Done()
		_, err := io.Copy(w, r)
		if errors.Is(err, os.ErrDeadlineExceeded) { // see limitDrain; the client may be slow to take what is there
			err = copyReady(w, r)
		}
		// A client that has gone must not stop the program: what it no longer takes is thrown away.
		if err != nil {
			_, _ = io.Copy(io.Discard, r)
		}
	}()
}

// blocking makes the end of a pipe that a program gets an ordinary one: os.Pipe's are non-blocking, which the program
// would see, and few expect.
func blocking(f *os.File) { f.Fd() }

// copyReady copies what a pipe or terminal holds now, without waiting for more.
func copyReady(w io.Writer, r *os.File) error {
	raw, err := r.SyscallConn()
	if err != nil {
		return err
	}
	ready, ioctl := 0, error(nil)
	// FIONREAD, pipe(7), under its other name, ioctl_tty(2)
	if err := raw.Control(func(fd uintptr) { ready, ioctl = unix.IoctlGetInt(int(fd), unix.TIOCINQ) }); err != nil || ioctl != nil {
		return errors.Join(err, ioctl)
	}
	if err := r.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	_, err = io.CopyN(w, r, int64(ready))
	return err
}

// feed copies the client's input. The goroutine ends when the client's stream does, which the streaming server sees
// to when the session ends; nobody waits for it. The end of the client's stream is passed on if closeAfter is set, but
// not the end of the client, which ctx ends with: that is for the session's owner to answer.
func (p *plumbing) feed(ctx context.Context, r io.Reader, w *os.File, closeAfter bool) {
	go func() {
		_, _ = io.Copy(w, r)
		if closeAfter && ctx.Err() == nil {
			w.Close()
		}
	}()
}

// handedOver closes the ends that the other side has its own copies of.
func (p *plumbing) handedOver() {
	for _, f := range p.theirs {
		f.Close()
	}
	p.theirs = nil
}

// limitDrain bounds how long more output is waited for: a child of the program may keep the pipe open for ever.
func (p *plumbing) limitDrain() {
	for _, f := range p.ours {
		_ = f.SetReadDeadline(time.Now().Add(drainTimeout))
	}
}

// close ends everything; output that has arrived is delivered first if drain is set.
func (p *plumbing) close(drain bool) {
	p.handedOver()
	if !drain {
		for _, f := range p.ours {
			f.Close()
		}
	}
	p.out.Wait()
	for _, f := range p.ours {
		f.Close()
	}
}

// Exec runs a program in a container with a client's streams and returns its exit code. When ctx ends, because the
// client has gone, the program's process tree is killed.
func (c *Containers) Exec(ctx context.Context, id string, cmd []string, s Streams) (int, error) {
	req, err := c.execRequest(id, cmd, s.TTY)
	if err != nil {
		return 0, err
	}
	var p plumbing
	if !s.TTY {
		if s.Stdin != nil {
			req.Stdin, err = p.input()
		}
		if s.Stdout != nil && err == nil {
			req.Stdout, err = p.output(s.Stdout)
		}
		if s.Stderr != nil && err == nil {
			req.Stderr, err = p.output(s.Stderr)
		}
	}
	if err != nil {
		p.close(false)
		return 0, err
	}
	x, err := c.cfg.Monitor.Exec(ctx, req)
	if err != nil {
		p.close(false)
		return 0, err
	}
	defer x.Close()
	p.handedOver()
	if s.TTY {
		p.terminal(ctx, x.Terminal, s)
	} else if s.Stdin != nil {
		p.feed(ctx, s.Stdin, p.stdin, true)
	}
	code, err := x.Wait(ctx)
	if err == nil {
		err = ctx.Err() // the program may have ended because its client did, and not so what it has started
	}
	if err != nil {
		err = errors.Join(err, x.Kill())
		p.close(false)
		return 0, err
	}
	x.Release()
	p.limitDrain()
	p.close(true)
	return code, nil
}

// terminal connects a pty master, which it owns from now on, to the client.
func (p *plumbing) terminal(ctx context.Context, master *os.File, s Streams) {
	p.ours = append(p.ours, master)
	if s.Stdout != nil {
		p.copyOut(s.Stdout, master) // ends with EIO when the last process has closed its side
	}
	if s.Stdin != nil {
		p.feed(ctx, s.Stdin, master, false)
	}
	go func() {
		for {
			select {
			case size, ok := <-s.Resize:
				if !ok {
					return
				}
				_ = resize(master, size)
			case <-ctx.Done():
				return
			}
		}
	}()
}

func resize(master *os.File, size Size) error {
	raw, err := master.SyscallConn()
	if err != nil {
		return err
	}
	var ioctl error
	err = raw.Control(func(fd uintptr) {
		ioctl = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Height, Col: size.Width})
	})
	return errors.Join(err, ioctl)
}

// Attach connects a client's streams to a running container's program. It returns when the container has ended, or
// when ctx ends because the client has gone.
func (c *Containers) Attach(ctx context.Context, id string, s Streams) error {
	ctr, err := c.Get(id)
	if err != nil {
		return err
	}
	if ctr.State != Running && ctr.State != Created {
		return fmt.Errorf("container %s is %s, it can't be attached to: %w", ctr.ID, ctr.State, errdefs.ErrFailedPrecondition)
	}
	var p plumbing
	req := &monitor.AttachRequest{ID: ctr.ID}
	if s.Stdin != nil && ctr.Config.GetStdin() {
		req.Stdin, err = p.input()
	}
	if s.Stdout != nil && err == nil {
		req.Stdout, err = p.output(s.Stdout)
	}
	if s.Stderr != nil && !ctr.Config.GetTty() && err == nil {
		req.Stderr, err = p.output(s.Stderr)
	}
	if err != nil {
		p.close(false)
		return err
	}
	a, err := c.cfg.Monitor.Attach(ctx, req)
	if err != nil {
		p.close(false)
		return err
	}
	defer a.Close()
	p.handedOver()
	if req.Stdin != nil {
		p.feed(ctx, s.Stdin, p.stdin, true)
	}
	resizing, stop := context.WithCancel(ctx)
	defer stop()
	go c.followSize(resizing, ctr.ID, s.Resize)
	if err := a.Wait(ctx); err != nil {
		p.close(false)
		return err
	}
	p.close(true)
	return nil
}

func (c *Containers) followSize(ctx context.Context, id string, sizes <-chan Size) {
	for {
		select {
		case size, ok := <-sizes:
			if !ok {
				return
			}
			if err := c.cfg.Monitor.Resize(ctx, id, size.Width, size.Height); err != nil {
				c.cfg.Log.Debug("resize", "container", id, "error", err)
			}
		case <-ctx.Done():
			return
		}
	}
}
