package native

import (
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// openPTY makes a pseudoterminal in the devpts of the container whose root is given, without trusting anything in it:
// what is opened is verified to be a devpts's ptmx, and the slave comes from the master (TIOCGPTPEER, Linux 4.13).
func (e *Engine) openPTY(root int, size *specs.Box) (master *os.File, slave int, err error) {
	const what = "/dev/pts/ptmx"
	p, err := inRoot(root, what, unix.O_PATH, unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return nil, -1, fmt.Errorf("%s (a terminal needs a devpts): %w", what, classify(err))
	}
	defer unix.Close(p)
	if !isFS(p, unix.DEVPTS_SUPER_MAGIC) || !isDevice(p, unix.S_IFCHR, unix.Mkdev(5, 2)) {
		return nil, -1, fmt.Errorf("%s is not that of a devpts: %w", what, errdefs.ErrPermissionDenied)
	}
	m, err := e.reopen(p, unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK)
	if err != nil {
		return nil, -1, fmt.Errorf("%s: %w", what, err)
	}
	master = os.NewFile(uintptr(m), "ptmx")
	if err = unix.IoctlSetPointerInt(m, unix.TIOCSPTLCK, 0); err == nil {
		slave, err = openPeer(m)
	}
	if err == nil && size != nil && size.Height <= 0xffff && size.Width <= 0xffff {
		err = unix.IoctlSetWinsize(m, unix.TIOCSWINSZ, &unix.Winsize{Row: uint16(size.Height), Col: uint16(size.Width)})
	}
	if err != nil {
		master.Close()
		return nil, -1, fmt.Errorf("terminal: %w", err)
	}
	return master, slave, nil
}

// openPeer opens a master's slave; the ioctl's argument is the open flags.
func openPeer(master int) (int, error) {
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return -1, errno
	}
	return int(r), nil
}

// console opens the container's terminal, binds it over /dev/console and makes it the stub's.
func (b *builder) console() error {
	if !b.spec.Process.Terminal {
		return nil
	}
	master, slave, err := b.engine.openPTY(b.root, b.spec.Process.ConsoleSize)
	if err != nil {
		return err
	}
	b.terminal = master
	defer unix.Close(slave)
	uid, err := b.ids.uid(b.spec.Process.User.UID)
	if err != nil {
		return err
	}
	if err := unix.Fchown(slave, int(uid), -1); err != nil {
		return err
	}
	dev, err := b.devDir()
	if err != nil {
		return err
	}
	defer unix.Close(dev)
	t, err := create(dev, "console", false)
	if err != nil {
		return fmt.Errorf("/dev/console: %w", err)
	}
	defer unix.Close(t)
	var st unix.Stat_t
	if err := unix.Fstat(t, &st); err != nil || st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return fmt.Errorf("/dev/console in the image is a symbolic link: %w", errdefs.ErrPermissionDenied)
	}
	c, err := cloneMount(slave, false)
	if err != nil {
		return err
	}
	defer unix.Close(c)
	if err := attach(c, t); err != nil {
		return err
	}
	return b.stub.do(opTTY, 0, nil, slave)
}
