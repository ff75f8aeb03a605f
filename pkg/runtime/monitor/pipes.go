package monitor

import (
	"fmt"
	"os"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// pipes are the three stdio pipes of a container without a terminal.
type pipes struct {
	theirs [3]*os.File // the container's ends; nil: none
	ours   [3]int      // -1: none
}

// newPipes makes what req asks for.
func newPipes(req *CreateRequest) (*pipes, error) {
	p := &pipes{ours: [3]int{-1, -1, -1}}
	if req.Spec.Process.Terminal {
		return p, nil
	}
	for i := range p.ours {
		if i == 0 && !req.Stdin {
			continue
		}
		var fds [2]int
		if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
			p.closeTheirs()
			p.closeOurs()
			return nil, fmt.Errorf("stdio pipe: %w", err)
		}
		theirs, ours := fds[1], fds[0]
		if i == 0 {
			theirs, ours = ours, theirs
		}
		p.ours[i], p.theirs[i] = ours, os.NewFile(uintptr(theirs), "stdio")
	}
	return p, nil
}

func (p *pipes) closeTheirs() {
	for i, f := range p.theirs {
		if f != nil {
			f.Close()
			p.theirs[i] = nil
		}
	}
}

func (p *pipes) closeOurs() {
	for i, fd := range p.ours {
		if fd >= 0 {
			unix.Close(fd)
			p.ours[i] = -1
		}
	}
}

// giveTo makes user the owner of a pipe. Without success the pipe still works; only opening it anew by its name in /proc
// needs the right. Nothing but a pipe is touched.
func (c *container) giveTo(f *os.File, user specs.User) {
	if f == nil {
		return
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
		return
	}
	_ = unix.Fchown(int(f.Fd()), int(toHost(user.UID, c.uids)), int(toHost(user.GID, c.gids)))
}

// toHost maps an id of the container's user namespace.
func toHost(id uint32, mappings []specs.LinuxIDMapping) uint32 {
	for _, m := range mappings {
		if id >= m.ContainerID && id-m.ContainerID < m.Size {
			return m.HostID + (id - m.ContainerID)
		}
	}
	return id
}
