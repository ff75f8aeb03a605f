package monitor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/seed-9a14075a/cri-server/pkg/faultpoint"
)

// A container's cgroup and its process take about as long to make, so both sides work at once: cri-server sends the request
// with the end of a pipe (kindCreateInto), makes the cgroup, and writes a byte into the pipe. cri-monitor makes the
// process and its mounts meanwhile, and waits for the byte before it puts the process there. Where cri-server could not make
// the cgroup, or has died, the pipe ends without it. The byte is no frame of its own, so that a create which is under way
// needs none to come to its end, in an upgrade either.
//
// A cri-monitor that is too old for that refuses the kind, and is sent kindCreate when the cgroup is there.

// cgroupMade is the byte.
const cgroupMade = 1

// Create builds a container. When ctx ends first, the container may come into being all the same; it is then listed and
// can be deleted. ErrAlreadyExists for an id that is in use.
func (c *Client) Create(ctx context.Context, req *CreateRequest) (st State, err error) {
	lost := false // an answer, so that the container may be there
	if req.FinishCgroup != nil {
		var done bool
		if done, lost, err = c.createInto(ctx, req, &st); done || err != nil {
			return st, err
		}
	}
	err = c.call(ctx, kindCreate, req.lean(), &st)
	if errdefs.IsAlreadyExists(err) && (lost || errors.Is(err, errRepeated)) {
		if st, err = c.State(ctx, req.ID); err == nil && st.StartError != "" { // see Start
			return State{}, fmt.Errorf("%s: %w", st.StartError, errdefs.ErrUnavailable)
		}
	}
	return st, err
}

// createInto lets cri-monitor begin before the cgroup is there. Neither done nor an error: the cgroup is there now, and the
// container is to be made by kindCreate.
func (c *Client) createInto(ctx context.Context, req *CreateRequest, st *State) (done, lost bool, err error) {
	theirs, ours, err := os.Pipe()
	if err != nil {
		return false, false, err
	}
	defer theirs.Close()
	defer ours.Close()
	finish := sync.OnceValue(func() error { return req.FinishCgroup(ctx) })
	var failed error
	limited, cancel := limit(ctx)
	defer cancel()
	err = c.try(limited, func(uc *net.UnixConn) error {
		f, err := answer(limited, uc, func() error {
			if err := writeFrame(uc, kindCreateInto, 1, req.lean(), theirs); err != nil {
				return err
			}
			theirs.Close()
			if failed = finish(); failed == nil {
				failed = faultpoint.Hit("monitor.client.cgroup")
			}
			if failed == nil {
				_, _ = ours.Write([]byte{cgroupMade}) // if nobody reads it, the answer tells why
			}
			ours.Close()
			return nil
		})
		if err != nil {
			return err
		}
		return f.result(st)
	})
	lost = errors.Is(err, errLost) && c.kept() != nil && ctx.Err() == nil
	switch {
	case failed != nil:
		return false, false, failed
	case !lost && !errdefs.IsNotImplemented(err) && !errdefs.IsNotFound(err): // an older one looks for the container first
		return err == nil, false, err
	}
	return false, lost, finish()
}

// create carries out a request for a container.
func (c *conn) create(ctx context.Context, f *frame) (any, error) {
	var req CreateRequest
	if err := f.decode(&req); err != nil {
		return nil, err
	}
	if f.kind == kindCreateInto {
		if len(f.files) != 1 || req.Cgroup == nil || req.OCI != nil {
			return nil, fmt.Errorf("container %s: a cgroup that is not there yet: %w", req.ID, errdefs.ErrInvalidArgument)
		}
		req.FinishCgroup = cgroupPipe{f.files[0]}.await
	}
	return c.s.create(ctx, &req)
}

// cgroupPipe tells that a container's cgroup is made.
type cgroupPipe struct{ f *os.File }

// await waits until cri-server has made the cgroup.
func (p cgroupPipe) await(ctx context.Context) error {
	if err := p.f.SetReadDeadline(time.Time{}); err != nil { // one that could not be interrupted
		return fmt.Errorf("pipe: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	stop := context.AfterFunc(ctx, func() { _ = p.f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var b [1]byte
	switch _, err := p.f.Read(b[:]); {
	case ctx.Err() != nil:
		return fmt.Errorf("wait for the cgroup: %w", ctx.Err())
	case errors.Is(err, io.EOF):
		return fmt.Errorf("the cgroup was not made: %w", errdefs.ErrAborted)
	case err != nil:
		return fmt.Errorf("wait for the cgroup: %w", err)
	case b[0] != cgroupMade:
		return fmt.Errorf("wait for the cgroup: byte %d: %w", b[0], errdefs.ErrInvalidArgument)
	}
	return faultpoint.Hit("monitor.create.cgroup")
}
