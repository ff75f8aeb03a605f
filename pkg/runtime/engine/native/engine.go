package native

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/reaper"
)

var _ engine.Engine = (*Engine)(nil)

// Engine is the native engine. Containers that it made stay usable after Close only through what they already hold.
type Engine struct {
	reaper *reaper.Reaper
	image  *os.File // the stub, in a sealed memfd
	proc   *os.File // a procfs that nobody else can reach, or mount anything over
	null   *os.File // the host's /dev/null, O_PATH
	stdin  *os.File // a /dev/null for those who have no stdio, O_PATH, on a read-only mount of its own
	empty  *os.File // an empty, read-only directory
	caps   uint64   // what this process has and may pass on
	// nursery is where containers' and sessions' processes come from.
	nursery nursery
	stock   stock
	tasks   taskCache
	// threads is where containers are built. self and home are this process's pidfd and root directory, for their way back.
	threads threads
	self    *os.File
	home    *os.File
	// stubProc is set once the kernel has refused proc's pidns= option, procByNS once it has taken it.
	stubProc, procByNS atomic.Bool
	// kept is what containers share of their specs.
	kept shared
}

// New makes an engine whose processes r reaps. It needs root, and returns errdefs.ErrNotImplemented where the kernel
// lacks what the engine is built on.
func New(r *reaper.Reaper) (*Engine, error) {
	e := &Engine{reaper: r, stock: stock{life: shelfLife}}
	if err := e.open(); err != nil {
		e.Close()
		return nil, fmt.Errorf("native engine: %w", err)
	}
	return e, nil
}

func (e *Engine) open() (err error) {
	// mount_setattr came with Linux 5.12, after all else that can't be done without (openat2, close_range, setns by
	// pidfd). An invalid call tells them apart.
	err = unix.MountSetattr(-1, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
	if errors.Is(err, unix.ENOSYS) {
		return fmt.Errorf("needs Linux 5.12 (mount_setattr): %w", errdefs.ErrNotImplemented)
	}
	if e.image, err = sealedImage(); err != nil {
		return fmt.Errorf("stub: %w", err)
	}
	if e.proc, err = openProc(); err != nil {
		return fmt.Errorf("proc: %w", err)
	}
	if e.null, err = openNull(); err != nil {
		return err
	}
	fd, err := newEmpty()
	if err != nil {
		return err
	}
	e.empty = os.NewFile(uintptr(fd), "empty")
	if e.stdin, err = makeNull(); err != nil {
		return fmt.Errorf("%s: %w", os.DevNull, err)
	}
	if e.caps, err = ownCaps(e.proc); err != nil {
		return err
	}
	pidfd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return fmt.Errorf("pidfd_open: %w", err)
	}
	e.self = os.NewFile(uintptr(pidfd), "self")
	if e.home, err = os.OpenFile("/", unix.O_PATH|unix.O_DIRECTORY, 0); err != nil {
		return err
	}
	e.threads.spare = func() time.Duration { return e.stock.tend(e) }
	e.threads.none = e.stock.clear
	return e.nursery.open(e)
}

// Name implements engine.Engine.
func (e *Engine) Name() string { return "native" }

// Release gives back what was made ahead of containers that nobody has asked for yet.
func (e *Engine) Release() { e.stock.clear() }

// Close releases the engine's own descriptors. No other method may run at the same time or afterwards.
func (e *Engine) Close() error {
	e.threads.close()
	e.stock.clear()
	e.tasks.clear()
	e.nursery.close()
	for _, f := range []*os.File{e.image, e.proc, e.null, e.stdin, e.empty, e.self, e.home} {
		if f != nil {
			f.Close()
		}
	}
	return nil
}

// sealedImage puts the stub in a memfd that nobody can write to, not even through a container's /proc/1/exe.
func sealedImage() (*os.File, error) {
	const name = "cri-stub"
	flags := unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate(name, flags|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // MFD_EXEC came with Linux 6.3; before it every memfd was executable
		fd, err = unix.MemfdCreate(name, flags)
	}
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	_, err = f.Write(stubImage)
	if err == nil {
		const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
		// Linux 6.3: the mode is sealed too. Else whoever opens some stub's /proc/PID/exe could keep the node from ever
		// executing it again.
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals|unix.F_SEAL_EXEC)
		if errors.Is(err, unix.EINVAL) {
			_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals)
		}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// openProc makes a detached procfs of this process's pid namespace; where that is refused (a nested container) it
// takes /proc, if that is one.
func openProc() (*os.File, error) {
	fd, err := newFS("proc", nil, 0)
	if err != nil {
		const flags = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
		if fd, err = unix.Open("/proc", flags, 0); err != nil {
			return nil, err
		}
	}
	f := os.NewFile(uintptr(fd), "proc")
	if !isFS(fd, unix.PROC_SUPER_MAGIC) {
		f.Close()
		return nil, fmt.Errorf("/proc is no procfs: %w", errdefs.ErrFailedPrecondition)
	}
	return f, nil
}

func openNull() (*os.File, error) {
	f, err := os.OpenFile(os.DevNull, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	if !isDevice(int(f.Fd()), unix.S_IFCHR, unix.Mkdev(1, 3)) {
		f.Close()
		return nil, fmt.Errorf("%s is not the null device: %w", os.DevNull, errdefs.ErrFailedPrecondition)
	}
	return f, nil
}

// makeNull makes a null device in a file system of its own, where it has the name that programs expect to see. A
// container's root could change mode and owner of the host's one through its descriptor 0. Who may not make devices (a
// nested container) takes the host's, on a read-only mount too.
func makeNull() (*os.File, error) {
	fs, err := newFS("tmpfs", []option{{"mode", "755"}, {"nr_inodes", "4"}}, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fs)
	if err := unix.Mkdirat(fs, "dev", 0o755); err != nil {
		return nil, err
	}
	const name = "dev/null"
	err = unix.Mknodat(fs, name, unix.S_IFCHR, int(unix.Mkdev(1, 3)))
	if err == nil {
		err = unix.Fchmodat(fs, name, 0o666, 0) // whatever the umask is
	}
	at, path := fs, name
	if errors.Is(err, unix.EPERM) {
		if at, err = unix.OpenTree(unix.AT_FDCWD, os.DevNull, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC); err == nil {
			defer unix.Close(at)
			path = ""
		}
	}
	if err == nil {
		err = deviceOnly.apply(at, false)
	}
	if err != nil {
		return nil, err
	}
	if path == "" {
		at, err = unix.FcntlInt(uintptr(at), unix.F_DUPFD_CLOEXEC, 3)
	} else {
		at, err = unix.Openat(at, path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(at), os.DevNull), nil
}

// ownCaps reads the capabilities that this process has and may pass on.
func ownCaps(proc *os.File) (uint64, error) {
	b, err := readAt(proc, "self/status")
	if err != nil {
		return 0, err
	}
	caps, found := ^uint64(0), 0
	for line := range strings.Lines(string(b)) {
		name, v, _ := strings.Cut(line, ":")
		if name != "CapBnd" && name != "CapPrm" {
			continue
		}
		set, err := strconv.ParseUint(strings.TrimSpace(v), 16, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/self/status: %w", err)
		}
		caps, found = caps&set, found+1
	}
	if found != 2 {
		return 0, fmt.Errorf("no capabilities in /proc/self/status: %w", errdefs.ErrFailedPrecondition)
	}
	return caps, nil
}
