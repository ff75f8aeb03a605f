package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/monitor/stdio"
)

// restored is the answer to kindRestore: what of it did not succeed, by container.
type restored struct {
	Failed map[string]string `json:"failed,omitempty"`
}

// part is one thing that a keeper has kept.
type part struct {
	kept
	fds    []int
	packed bool // Data is, by LaunchConfig.Packer
}

// restore takes back what a keeper has of a cri-monitor that has died. All comes on this connection, one message for
// each container, and is answered after the last.
func (c *conn) restore(f *frame) error {
	id := f.id
	parts, err := c.parts(f)
	if err != nil { // nothing was taken; who keeps it has it, and begins anew
		closeParts(parts)
		_ = c.fail(id, err)
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	return c.write(kindOK, id, restored{c.s.takeBack(ctx, parts)})
}

// parts are all messages of a restore; f is the first.
func (c *conn) parts(f *frame) (parts []part, err error) {
	for {
		var k kept
		if err = f.decode(&k); err == nil {
			var p part
			if p, err = f.part(k); err == nil {
				parts = append(parts, p)
			}
		}
		f.closeFiles()
		if err != nil || k.Synced {
			return parts, err
		}
		if f, err = c.more(); err != nil {
			return parts, err
		}
		if f.kind != kindRestore {
			f.closeFiles()
			return parts, fmt.Errorf("request of kind %d within a restore: %w", f.kind, errdefs.ErrFailedPrecondition)
		}
	}
}

// part takes the descriptors of f as ones that Go's poller knows nothing of.
func (f *frame) part(k kept) (part, error) {
	p := part{kept: k, fds: f.fds}
	f.fds = nil
	for _, file := range f.files {
		fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			closeFDs(p.fds)
			return part{}, fmt.Errorf("duplicate: %w", err)
		}
		p.fds = append(p.fds, fd)
	}
	return p, nil
}

func closeParts(parts []part) {
	for _, p := range parts {
		closeFDs(p.fds)
	}
}

// takeBack goes on with the containers of a cri-monitor that has died, and with its journal if this one has not begun
// its own. It owns the descriptors. What fails is logged and returned.
func (s *Server) takeBack(ctx context.Context, parts []part) map[string]string {
	failed := map[string]string{}
	incomplete := s.takeJournals(parts)
	parts = slices.DeleteFunc(parts, func(p part) bool {
		_, journal := p.journal()
		return journal || p.Synced
	})
	// What the former one was about to write lies where the next output goes.
	if unfinished := s.loops.Unfinished(); len(unfinished) > 0 {
		slices.SortStableFunc(parts, func(a, b part) int {
			return boolOrder(slices.Contains(unfinished, a.slot()), slices.Contains(unfinished, b.slot()))
		})
	}
	for _, p := range parts {
		c, err := s.restore(ctx, p.Data, p.fds, true)
		switch {
		case errdefs.IsAlreadyExists(err): // another keeper was faster
		case err != nil:
			s.log.Error("container can't be taken back", "container", p.ID, "err", err)
			failed[p.ID] = err.Error()
		default:
			s.log.Info("container taken back", "container", c.id, "status", c.state.Load().Status)
			if incomplete != nil {
				s.log.Error("its log may lack a record of the time of the crash", "container", c.id, "err", incomplete)
			}
			c.keep()
			c.awaitEnd()
		}
	}
	s.loops.Begin()
	return failed
}

func (p *part) slot() int {
	var v struct {
		Stdio stdio.Saved `json:"stdio"`
	}
	v.Stdio.Slot = -1
	_ = json.Unmarshal(p.Data, &v)
	return v.Stdio.Slot
}

func boolOrder(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

// takeJournals goes on with another process's journals. There must be no containers.
func (s *Server) takeJournals(parts []part) error {
	s.mu.Lock()
	used := len(s.containers) > 0
	s.mu.Unlock()
	var failed []error
	for _, p := range parts {
		number, ok := p.journal()
		switch {
		case !ok:
		case used:
			closeFDs(p.fds)
			failed = append(failed, fmt.Errorf("this cri-monitor has containers already: %w", errdefs.ErrFailedPrecondition))
		default:
			failed = append(failed, s.loops.Adopt(number, p.fds))
		}
	}
	return errors.Join(failed...)
}
