package native

import (
	"errors"
	"fmt"
	"os"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

// clonable are the namespaces that the stub is forked into; the cgroup namespace comes when it is in its cgroup.
const clonable = unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWNET

// twoStep: a user namespace must be made before those that shall be its own, and a time namespace takes effect for children
// only: such a stub forks itself. A joined pid namespace has others in it, see joinPIDs.
func (b *builder) twoStep() bool {
	return b.ns.own(unix.CLONE_NEWUSER) || b.ns.own(unix.CLONE_NEWTIME) || b.ns.joined[unix.CLONE_NEWPID] != nil
}

// launch orders the fork of the container's stub into its namespaces, and into its cgroup as far as clone3(2) can do that.
func (b *builder) launch() (err error) {
	l := launch{clone: b.ns.made & clonable}
	l.stdio[0], l.stdio[1], l.stdio[2] = b.config.Stdin, b.config.Stdout, b.config.Stderr
	cg := b.config.Cgroup
	if cg != nil && cg.Unified != "" {
		l.cgroup = &engine.Cgroup{Unified: cg.Unified}
	}
	if cg == nil || len(cg.V1) == 0 {
		l.unshare = b.ns.made & unix.CLONE_NEWCGROUP
	}
	if b.twoStep() {
		l.clone, l.unshare = 0, 0
	}
	if !b.nested() && b.ns.made&unix.CLONE_NEWNS != 0 { // as a copy of the engine's
		home, err := b.engine.mountNS()
		if err != nil {
			return err
		}
		l.joins, l.closing = append(l.joins, home), append(l.closing, home)
		if !b.twoStep() {
			l.clone, l.unshare = l.clone&^unix.CLONE_NEWNS, l.unshare|unix.CLONE_NEWNS
		}
	}
	l.joins = append(l.joins, b.joins()...)
	b.forking, err = b.engine.beginFork(l)
	return err
}

// joins are the namespaces that the stub joins.
func (b *builder) joins() (fds []int) {
	// These don't decide about the right to join the others.
	for _, flag := range []uintptr{unix.CLONE_NEWNET, unix.CLONE_NEWIPC, unix.CLONE_NEWUTS, unix.CLONE_NEWCGROUP, unix.CLONE_NEWNS} {
		if f := b.ns.joined[flag]; f != nil {
			fds = append(fds, int(f.Fd()))
		}
	}
	return fds
}

// take makes the stub of the kit, if there is one, the container's. Without one b is as before.
func (b *builder) take() bool {
	if b.kit == nil || b.kit.stub == nil {
		return false
	}
	s := b.kit.stub
	fds, null, err := b.engine.stdio([3]*os.File{b.config.Stdin, b.config.Stdout, b.config.Stderr})
	if err == nil {
		err = s.ask(func(at int, err error) error {
			if failed := (*stubError)(nil); errors.As(err, &failed) {
				return &joinError{at, err}
			}
			return err
		}, opTake, 0, nil, append(fds, b.joins()...)...)
	}
	closeFD(null)
	if err != nil { // it has just died
		b.kit.discard()
		b.kit = nil
		return false
	}
	b.stub, b.kit.stub = s, nil
	return true
}

// bornInto tells whether the stub is to be forked into a cgroup that need not be there from the beginning.
func (b *builder) bornInto() bool { return b.config.Cgroup != nil && len(b.config.Cgroup.V1) == 0 }

// spawn takes over the container's stub, and brings it to where it stays.
func (b *builder) spawn() (err error) {
	b.recipe = newRecipe(b)
	b.kit = b.engine.stock.take(b.recipe)
	if b.take() {
		b.release = b.stub.guard(b.ctx)
		return b.beforehand()
	}
	meanwhile := b.beforehand
	if b.bornInto() {
		if err := b.beforehand(); err != nil {
			return err
		}
		if err := b.awaitPlace(); err != nil {
			return err
		}
		meanwhile = nil
	}
	if err := b.launch(); err != nil {
		return err
	}
	if b.stub, err = b.forking.finish(meanwhile); err != nil {
		return err
	}
	b.release = b.stub.guard(b.ctx)
	if !b.twoStep() {
		return nil
	}
	if err := b.settled(); err != nil {
		return err
	}
	if err := b.secondStep(); err != nil {
		return err
	}
	if b.ns.made&unix.CLONE_NEWCGROUP != 0 {
		if err := b.stub.do(opUnshare, unix.CLONE_NEWCGROUP, nil); err != nil {
			return fmt.Errorf("cgroup namespace: %w", err)
		}
	}
	return nil
}

// beforehand does what needs no stub.
func (b *builder) beforehand() error {
	// For a working directory of its own; besides, setns(2) of a mount namespace is EINVAL without.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := b.openSources(); err != nil {
		return err
	}
	if b.ns.own(unix.CLONE_NEWUSER) { // its layers are mapped
		return nil
	}
	return b.openRoot()
}

// nested tells whether the container's mount namespace begins with the nursery's empty file system, and its root is
// mounted over that. Hooks see the host's mounts until pivot_root, and the kernel lets a user namespace mount proc and
// sysfs only where there is such a mount already.
func (b *builder) nested() bool {
	return b.ns.made&unix.CLONE_NEWNS != 0 && !b.ns.own(unix.CLONE_NEWUSER) && !hasHooks(b.spec)
}

// mountNS opens the mount namespace of this process.
func (e *Engine) mountNS() (int, error) {
	fd, err := unix.Openat(int(e.proc.Fd()), "self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("mount namespace: %w", err)
	}
	return fd, nil
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
	return s.refork(b.ns.made&clonable, nil)
}

// joinPIDs makes the stub's children be born into a pid namespace that has processes. Those may have the right to look
// into others (CAP_SYS_PTRACE), and must not come to the host's files through /proc/PID/root, or to this process's
// memory and files, which its own child would share until its execve. So it is the stub's child that goes there, with an
// empty root until pivot.
func (b *builder) joinPIDs(f *os.File) error {
	if !b.nested() {
		if err := b.stub.do(opRoot, 0, nil, int(b.engine.empty.Fd())); err != nil {
			return fmt.Errorf("empty root: %w", err)
		}
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
