package native

import (
	"fmt"
	"os"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// threadJoins are the namespaces that the forking thread can join before the fork, in the order that works: those that
// don't decide about the right to join the others.
var threadJoins = []uintptr{unix.CLONE_NEWNET, unix.CLONE_NEWIPC, unix.CLONE_NEWUTS, unix.CLONE_NEWCGROUP}

// clonable are the namespaces that the stub is forked into; the cgroup namespace comes when it is in its cgroup.
const clonable = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWNET

// spawn forks the container's stub into its namespaces and its cgroup. It changes the calling thread's namespaces.
func (b *builder) spawn() (err error) {
	for _, flag := range threadJoins {
		if f := b.ns.joined[flag]; f != nil {
			if err := unix.Setns(int(f.Fd()), int(flag)); err != nil {
				return fmt.Errorf("join %s: %w", f.Name(), err)
			}
		}
	}
	l := launch{flags: b.ns.made & clonable, cgroup: b.config.Cgroup}
	l.stdio[0], l.stdio[1], l.stdio[2] = b.config.Stdin, b.config.Stdout, b.config.Stderr
	// Go's own CLONE_NEWUSER is a full fork, which copies the page tables of the whole process, and a time namespace
	// takes effect for children only: such a stub is forked plainly and forks itself.
	// A joined pid namespace has others in it, see joinPIDs.
	twoStep := b.ns.own(unix.CLONE_NEWUSER) || b.ns.own(unix.CLONE_NEWTIME) || b.ns.joined[unix.CLONE_NEWPID] != nil
	if twoStep {
		l.flags = 0
	}
	if b.stub, err = b.engine.fork(l); err != nil {
		return err
	}
	b.release = b.stub.guard(b.ctx)
	if err := b.stub.joinV1(b.config.Cgroup); err != nil {
		return err
	}
	if f := b.ns.joined[unix.CLONE_NEWNS]; f != nil {
		if err := b.stub.do(opSetns, unix.CLONE_NEWNS, nil, int(f.Fd())); err != nil {
			return fmt.Errorf("join %s: %w", f.Name(), err)
		}
	}
	if twoStep {
		if err := b.secondStep(); err != nil {
			return err
		}
	}
	if b.ns.made&unix.CLONE_NEWCGROUP != 0 {
		if err := b.stub.do(opUnshare, unix.CLONE_NEWCGROUP, nil); err != nil {
			return fmt.Errorf("cgroup namespace: %w", err)
		}
	}
	return nil
}

func (b *builder) secondStep() error {
	s, linux := b.stub, b.spec.Linux
	if f := b.ns.joined[unix.CLONE_NEWTIME]; f != nil {
		if err := s.do(opSetns, unix.CLONE_NEWTIME, nil, int(f.Fd())); err != nil {
			return fmt.Errorf("join %s: %w", f.Name(), err)
		}
	}
	switch f := b.ns.joined[unix.CLONE_NEWUSER]; {
	case f != nil:
		if err := s.do(opSetns, unix.CLONE_NEWUSER, nil, int(f.Fd())); err != nil {
			return fmt.Errorf("join %s: %w", f.Name(), err)
		}
	case b.ns.made&unix.CLONE_NEWUSER != 0:
		if err := s.newUserNS(idMap{linux.UIDMappings, linux.GIDMappings}); err != nil {
			return err
		}
	}
	if b.ns.own(unix.CLONE_NEWUSER) {
		var err error
		if b.ids, err = s.ids(); err != nil {
			return fmt.Errorf("user namespace: %w", err)
		}
		if err := s.do(opSetID, 0, nil); err != nil {
			return fmt.Errorf("become root of the user namespace: %w", err)
		}
	}
	if b.ns.made&unix.CLONE_NEWTIME != 0 {
		if err := s.newTimeNS(linux.TimeOffsets); err != nil {
			return err
		}
	}
	if f := b.ns.joined[unix.CLONE_NEWPID]; f != nil {
		if err := b.joinPIDs(f); err != nil {
			return err
		}
	}
	return s.refork(b.ns.made & clonable)
}

// joinPIDs makes the stub's children be born into a pid namespace that has processes. Those may have the right to look
// into others (CAP_SYS_PTRACE), and must not come to the host's files through /proc/PID/root, or to this process's
// memory and files, which its own child would share until its execve. So it is the stub's child that goes there, with an
// empty root until pivot.
func (b *builder) joinPIDs(f *os.File) error {
	if err := b.stub.do(opRoot, 0, nil, int(b.engine.empty.Fd())); err != nil {
		return fmt.Errorf("empty root: %w", err)
	}
	if err := b.stub.do(opSetns, unix.CLONE_NEWPID, nil, int(f.Fd())); err != nil {
		return fmt.Errorf("join %s: %w", f.Name(), err)
	}
	return nil
}

func (s *stub) newUserNS(m idMap) error {
	if err := s.do(opUnshare, unix.CLONE_NEWUSER, nil); err != nil {
		return fmt.Errorf("user namespace: %w", err)
	}
	if err := s.write("uid_map", formatMap(m.uids)); err != nil {
		return fmt.Errorf("linux.uidMappings: %w", err)
	}
	if err := s.write("gid_map", formatMap(m.gids)); err != nil {
		return fmt.Errorf("linux.gidMappings: %w", err)
	}
	return nil
}

func (s *stub) newTimeNS(offsets map[string]specs.LinuxTimeOffset) error {
	if err := s.do(opUnshare, unix.CLONE_NEWTIME, nil); err != nil {
		return fmt.Errorf("time namespace: %w", err)
	}
	var b strings.Builder
	for clock, o := range offsets {
		fmt.Fprintf(&b, "%s %d %d\n", clock, o.Secs, o.Nanosecs)
	}
	if b.Len() == 0 {
		return nil
	}
	if err := s.write("timens_offsets", b.String()); err != nil {
		return fmt.Errorf("linux.timeOffsets: %w", err)
	}
	return nil
}
