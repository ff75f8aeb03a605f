package monitor

import (
	"fmt"
	"regexp"
	"strconv"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/reaper"
)

// procNamespace matches the path of a process's namespace.
var procNamespace = regexp.MustCompile(`^/+proc/+([0-9]+)/+ns/`)

// joined are the processes whose namespaces a container joins by path. Each must be the init of a container that this
// monitor holds (ErrFailedPrecondition): the pid of such a one is nobody else's until it was reaped, see unreaped, while any
// other pid may have become another process's since the caller has looked.
func (s *Server) joined(spec *specs.Spec) (held []*reaper.Child, err error) {
	if spec.Linux == nil {
		return nil, nil
	}
	for _, n := range spec.Linux.Namespaces {
		if n.Path == "" {
			continue
		}
		m := procNamespace.FindStringSubmatch(n.Path)
		if m == nil {
			continue
		}
		pid, _ := strconv.Atoi(m[1])
		child := s.holds(pid)
		if child == nil {
			return nil, fmt.Errorf("%s namespace %s: process %d is not the first of a container that is there: %w",
				n.Type, n.Path, pid, errdefs.ErrFailedPrecondition)
		}
		held = append(held, child)
	}
	return held, nil
}

// holds finds the init with that pid.
func (s *Server) holds(pid int) *reaper.Child {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, c := range s.containers {
		if st := c.state.Load(); st != nil && st.Status != Stopped && st.Pid == pid {
			return c.ctr.Process().Child()
		}
	}
	return nil
}

// unreaped tells whether none of the processes was reaped yet, so that what was joined by their pids is theirs.
func unreaped(held []*reaper.Child) error {
	for _, c := range held {
		select {
		case <-c.Done():
			return fmt.Errorf("process %d, whose namespaces are joined, has ended meanwhile: %w", c.Pid(), errdefs.ErrFailedPrecondition)
		default:
		}
	}
	return nil
}
