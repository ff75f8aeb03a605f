package monitor

import (
	"fmt"
	"unique"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Most of an exec's request would be what cri-monitor knows from the container's create: the filter, of some thousand bytes, and
// the capabilities. A request of kindExecOwn leaves that out. A cri-monitor that does not know it any more, since it has taken
// the container over from another, or not yet, since it is older, refuses it with ErrNotImplemented, and gets all of it.

// own is what of the container's own a session may be like. The zero value knows nothing; guarded by execSet.mu.
type own struct {
	known  bool
	filter unique.Handle[string] // most containers of a node have the same
}

// learn takes note of the container's filter.
func (e *execSet) learn(filter []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.own.known {
		e.own = own{true, unique.Make(string(filter))}
	}
}

// complete adds what the request of a session has left out; the engine does so with the rest.
func (c *container) complete(call *stdioCall) error {
	c.execs.mu.Lock()
	defer c.execs.mu.Unlock()
	if o := c.execs.own; o.known && c.oci == nil {
		call.Seccomp = []byte(o.filter.Value())
		return nil
	}
	return fmt.Errorf("exec in container %s: its own filter is not known: %w", c.id, errdefs.ErrNotImplemented)
}

// lean is the process without what the engine takes from the container's own.
func lean(p *specs.Process) *specs.Process {
	if p == nil {
		return nil
	}
	q := *p
	q.Capabilities, q.Rlimits, q.ApparmorProfile, q.SelinuxLabel = nil, nil, "", ""
	q.Scheduler, q.IOPriority, q.ExecCPUAffinity = nil, nil, nil
	return &q
}
