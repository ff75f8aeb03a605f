package native

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/rootfs"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

// builder makes one container; all of it runs on one thread, which may end with that.
type builder struct {
	ctx     context.Context
	engine  *Engine
	config  *engine.Config
	spec    *specs.Spec
	ns      *namespaces
	forking *forking // since launch
	stub    *stub
	kit     *kit // nil: nothing was made ahead
	recipe  *recipe
	release func()
	id      *identity // of the container's process
	// places is the cgroup, when brought has rung. joined: the stub has the order to join it. rooted: the root is attached. prepared: the
	// stub has its identity.
	places                             *place
	brought                            bell
	place                              *place
	joined, rooted, prepared, finished bool
	// same: leave can make the thread what it was.
	same bool
	// remask: something was mounted over proc, so that what a kit has masked there must be masked again.
	remask bool
	umask  int

	ids    idMap
	mounts []*mountPoint

	nullClone     int // of the host's null device; -1: none
	emptyClone    int // of an empty, read-only file system; -1: none
	root          int // the root file system, detached and then attached; -1 before
	userNS        *os.File
	helpers       map[string]*os.File // user namespaces of id-mapped mounts, by their mapping
	readOnlyLater []int               // tmpfs mounts that turn read-only at the end
	terminal      *os.File            // the pty's master
}

// build changes the thread that it runs on. On error the stub, if there is one, is for the caller to kill.
func (b *builder) build() (err error) {
	defer func() {
		if err != nil {
			err = b.why(err)
			b.close()
		}
	}()
	if err := b.spawn(); err != nil {
		return err
	}
	if err := b.outside(); err != nil {
		return err
	}
	if b.root < 0 {
		if err := b.openRoot(); err != nil {
			return err
		}
	}
	if b.early() {
		if err := b.settled(); err != nil {
			return err
		}
	}
	if err := b.enter(); err != nil {
		return err
	}
	for _, step := range [...]struct {
		name string
		f    func() error
	}{
		{"root", b.attachRoot}, {"", b.mountAll}, {"devices", b.devices}, {"terminal", b.console}, {"cwd", b.workdir},
		{"", b.createHooks}, {"masked path", b.mask}, {"read-only path", b.readOnly}, {"sysctl", b.sysctl},
		{"pivot", b.pivot},
	} {
		if err := b.advance(); err != nil {
			return err
		}
		if err := step.f(); err != nil {
			if step.name != "" {
				err = fmt.Errorf("%s: %w", step.name, err)
			}
			return err
		}
	}
	b.same = b.nested()
	if !b.arrived() {
		return nil // whoever brings the cgroup goes on
	}
	return b.finish()
}

// why is what the stub has said before it died, if that is why the builder could not go on: it prepares itself meanwhile.
func (b *builder) why(err error) error {
	if b.stub == nil || !errors.Is(err, errStubDied) {
		return err
	}
	if said := b.stub.settled(); said != nil && !errors.Is(said, errStubDied) {
		return said
	}
	return err
}

// leave moves the thread back to where it was before enter, and tells whether it is fit for the next container.
func (b *builder) leave() bool {
	back := b.same && unix.Setns(int(b.engine.self.Fd()), int(b.entered())) == nil &&
		unix.Fchdir(int(b.engine.home.Fd())) == nil && unix.Chroot(".") == nil && unix.Umask(b.umask) == 0
	b.close()
	if back { // before this thread comes to rest, and so sees it
		b.engine.stock.want(b.recipe)
	}
	return back
}

func (b *builder) close() {
	for _, m := range b.mounts {
		closeFD(m.source)
		m.source = -1
	}
	for _, fd := range b.readOnlyLater {
		closeFD(fd)
	}
	for _, f := range b.helpers {
		f.Close()
	}
	if b.userNS != nil {
		b.userNS.Close()
	}
	closeFD(b.nullClone)
	closeFD(b.emptyClone)
	if b.kit != nil {
		b.kit.close()
	}
	closeFD(b.root)
	b.mounts, b.readOnlyLater, b.helpers, b.userNS = nil, nil, nil, nil
	b.nullClone, b.emptyClone, b.root = -1, -1, -1
}

// outside sets what is set from outside of the container.
func (b *builder) outside() error {
	if err := b.stub.setOOMScoreAdj(b.spec.Process.OOMScoreAdj); err != nil {
		return err
	}
	c := b.config
	if err := ownPipes(b.ids, b.spec.Process.User.UID, c.Stdin, c.Stdout, c.Stderr); err != nil {
		return err
	}
	if !b.ns.own(unix.CLONE_NEWUSER) {
		return nil
	}
	var err error
	b.userNS, err = b.stub.userNS()
	return err
}

// ownPipes gives pipes to the process's user, who else couldn't open /dev/stdout again.
func ownPipes(ids idMap, user uint32, files ...*os.File) error {
	uid, err := ids.uid(user)
	if err != nil {
		return err
	}
	for _, f := range files {
		var st unix.Stat_t
		if f == nil || unix.Fstat(int(f.Fd()), &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO || st.Uid == uid {
			continue
		}
		if err := unix.Fchown(int(f.Fd()), int(uid), -1); err != nil {
			return fmt.Errorf("chown of a stdio pipe: %w", err)
		}
	}
	return nil
}

// openRoot makes the detached mount of the root file system, still in the engine's mount namespace.
func (b *builder) openRoot() error {
	o := rootfs.Options{Label: b.spec.Linux.MountLabel, OwnDir: true}
	if b.userNS != nil {
		o.UserNS = b.userNS
		var err error
		if o.RootUID, err = b.ids.uid(0); err == nil {
			o.RootGID, err = b.ids.gid(0)
		}
		if err != nil {
			return err
		}
	}
	f, err := b.config.Rootfs.Open(o)
	if err != nil {
		return classify(err)
	}
	defer f.Close()
	b.root, err = unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	return err
}

// enter moves the thread into the stub's namespaces. It stays in its own pid and user namespace: in the user namespace
// of the host it may do what the container's root may not, such as making device nodes.
func (b *builder) enter() error {
	// The stub was forked into those that are made; others it may be about to join.
	flags := b.entered()
	for flag, f := range b.ns.joined {
		if f == nil || flags&flag == 0 {
			continue
		}
		if err := unix.Setns(int(f.Fd()), int(flag)); err != nil {
			return fmt.Errorf("enter %s: %w", f.Name(), err)
		}
		flags &^= flag
	}
	if flags != 0 {
		if err := unix.Setns(b.stub.pidfd, int(flags)); err != nil {
			if errors.Is(err, unix.ESRCH) {
				err = errStubDied
			}
			return fmt.Errorf("enter the namespaces: %w", err)
		}
	}
	b.umask = unix.Umask(0)
	if b.userNS == nil {
		return nil
	}
	return b.asContainerRoot()
}

// entered are the namespaces that the thread enters.
func (b *builder) entered() uintptr {
	flags := b.ns.all() & (unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWNET)
	if b.early() {
		flags |= b.ns.all() & unix.CLONE_NEWCGROUP
	}
	return flags
}

// asContainerRoot makes the files that the thread creates belong to the container's root, and be creatable at all in
// id-mapped mounts, with the capabilities kept (SECBIT_NO_SETUID_FIXUP, capabilities(7)).
func (b *builder) asContainerRoot() error {
	const noSetuidFixup = 1 << 2
	uid, err := b.ids.uid(0)
	if err != nil {
		return err
	}
	gid, err := b.ids.gid(0)
	if err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_SECUREBITS, noSetuidFixup, 0, 0, 0); err != nil {
		return fmt.Errorf("securebits: %w", err)
	}
	if err := unix.Setfsgid(int(gid)); err != nil {
		return err
	}
	return unix.Setfsuid(int(uid))
}

// attachRoot mounts the root over the empty one. Where there are hooks it cuts the copied mounts off the host and attaches
// the root at the bundle's rootfs directory, where hooks look for it.
func (b *builder) attachRoot() error {
	p := propagations[b.spec.Linux.RootfsPropagation]
	if p.flag != unix.MS_PRIVATE {
		p.flag = unix.MS_SLAVE
	}
	// A root cloned from a directory is a peer of the mount it is on, which on a machine with systemd is shared: then what is
	// mounted below it would be the host's too, and pivot_root(2) refuses it.
	if err := propagate(b.root, propagation{p.flag, true}); err != nil {
		return fmt.Errorf("cut the root off from the host: %w", err)
	}
	if b.nested() {
		if err := unix.MoveMount(b.root, "", unix.AT_FDCWD, "/", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return fmt.Errorf("attach: %w", err)
		}
		b.rooted = true
		return nil
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|uintptr(p.flag), ""); err != nil {
		return fmt.Errorf("cut off from the host: %w", err)
	}
	err := unix.MoveMount(b.root, "", unix.AT_FDCWD, b.rootDir(), unix.MOVE_MOUNT_F_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("attach at %s: %w", b.rootDir(), err)
	}
	return nil
}

func (b *builder) rootDir() string {
	if hasHooks(b.spec) {
		return filepath.Join(b.config.Dir, bundleRoot)
	}
	return b.config.Dir
}

// workdir makes the process's directory where the image has none.
func (b *builder) workdir() error {
	fd, err := ensure(b.root, b.spec.Process.Cwd, true)
	if err != nil && !errors.Is(err, unix.EROFS) && !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.ENOTDIR) {
		return classify(err)
	}
	closeFD(fd) // what is still missing shows when the process goes there
	return nil
}

// pivot finishes the root and makes it the only one. The stub enters it itself when it starts, see flagTop.
func (b *builder) pivot() error {
	for _, fd := range b.readOnlyLater {
		if err := (attrChange{set: unix.MOUNT_ATTR_RDONLY}).apply(fd, false); err != nil {
			return fmt.Errorf("read-only tmpfs: %w", err)
		}
	}
	if r := b.spec.Root; r != nil && r.Readonly {
		if err := (attrChange{set: unix.MOUNT_ATTR_RDONLY}).apply(b.root, false); err != nil {
			return fmt.Errorf("read-only root: %w", err)
		}
	}
	if !b.nested() {
		if err := b.leaveHost(); err != nil {
			return err
		}
	}
	if p, ok := propagations[b.spec.Linux.RootfsPropagation]; ok {
		// Not recursive: what is mounted below has the propagation that its own options gave it. pivot_root refuses
		// a shared root, so this comes last.
		return propagate(b.root, propagation{p.flag, false})
	}
	return nil
}

// leaveHost takes the host's mounts out of the container's mount namespace. pivot_root moves the waiting stub's root and
// directory along where both are the old root (pivot_root(2)); after joinPIDs they are not.
func (b *builder) leaveHost() error {
	if err := unix.Fchdir(b.root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("detach the host's mounts: %w", err)
	}
	if b.ns.joined[unix.CLONE_NEWPID] != nil {
		if err := b.stub.do(opRoot, 0, nil, b.root); err != nil {
			return fmt.Errorf("enter the root: %w", err)
		}
	}
	return nil
}
