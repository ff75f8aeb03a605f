package native

import (
	"errors"
	"fmt"
	"path"
	"strconv"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// mountPoint is one entry of Spec.Mounts on its way into the container.
type mountPoint struct {
	specs.Mount
	mountOptions
	source int // a bind mount's source: a detached clone, made in the engine's own mount namespace; else -1
}

// openSources parses the mounts and clones the sources of bind mounts, before the thread leaves the engine's mount
// namespace: there the paths mean what the caller meant, and a clone keeps its propagation with the host.
func (b *builder) openSources() (err error) {
	if len(b.spec.Linux.MaskedPaths) > 0 {
		if b.nullClone, err = b.cloneNull(); err != nil {
			return err
		}
		if b.emptyClone, err = b.cloneEmpty(); err != nil {
			return err
		}
	}
	for _, m := range b.spec.Mounts {
		o, err := parseOptions(m.Type, m.Options)
		if err != nil {
			return fmt.Errorf("mount %s: %w", m.Destination, err)
		}
		p := &mountPoint{Mount: m, mountOptions: o, source: -1}
		b.mounts = append(b.mounts, p)
		if !o.bind || o.remount {
			continue
		}
		flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
		if o.rbind {
			flags |= unix.AT_RECURSIVE
		}
		if p.source, err = unix.OpenTree(unix.AT_FDCWD, m.Source, flags); err != nil {
			return fmt.Errorf("mount %s: source %s: %w", m.Destination, m.Source, classify(err))
		}
	}
	return nil
}

// cloneNull makes a mount of the host's null device for masked paths.
func (b *builder) cloneNull() (int, error) {
	fd, err := cloneMount(int(b.engine.null.Fd()), false)
	if err == nil {
		if err = deviceOnly.apply(fd, false); err != nil {
			unix.Close(fd)
		}
	}
	if err != nil {
		return -1, fmt.Errorf("the null device: %w", err)
	}
	return fd, nil
}

// cloneEmpty makes a mount of an empty directory for masked paths.
func (b *builder) cloneEmpty() (int, error) {
	fd, err := cloneMount(int(b.engine.empty.Fd()), false)
	if err != nil { // Before Linux 6.15 there were no clones of what is not attached.
		fd, err = newEmpty()
	}
	if err != nil {
		return -1, fmt.Errorf("masked paths: %w", err)
	}
	return fd, nil
}

// mountAll makes every mount of the spec, in its order.
func (b *builder) mountAll() error {
	for _, m := range b.mounts {
		err := b.advance()
		switch {
		case err != nil:
		case m.remount:
			err = b.remount(m)
		case m.bind:
			err = b.bind(m)
		case m.Type == "cgroup" || m.Type == "cgroup2":
			err = b.cgroup(m)
		default:
			err = b.filesystem(m)
		}
		if err != nil {
			return fmt.Errorf("mount %s: %w", m.Destination, err)
		}
	}
	return nil
}

func (b *builder) remount(m *mountPoint) error {
	t, err := inRoot(b.root, m.Destination, unix.O_PATH, 0)
	if err != nil {
		return classify(err)
	}
	defer unix.Close(t)
	return m.finish(t)
}

// bind attaches the clone of a host's file or directory.
func (b *builder) bind(m *mountPoint) error {
	if !hasPropagation(m.propagation, unix.MS_SHARED) { // a shared one stays the host's peer
		if err := propagate(m.source, b.inherited()); err != nil {
			return err
		}
	}
	if err := b.mapIDs(m); err != nil {
		return err
	}
	if err := m.setAttrs(m.source); err != nil {
		return err
	}
	dir, err := isDir(m.source)
	if err != nil {
		return err
	}
	t, err := b.target(m.Destination, dir, m.source)
	if err != nil {
		return err
	}
	defer unix.Close(t)
	if err := attach(m.source, t); err != nil {
		return err
	}
	return m.propagate(m.source)
}

func hasPropagation(ps []propagation, flag uint64) bool {
	for _, p := range ps {
		if p.flag == flag {
			return true
		}
	}
	return false
}

// inherited is the propagation of a bind mount that asks for none: as if it were cloned from a host tree made
// linux.rootfsPropagation, rslave by default (as runc has it).
func (b *builder) inherited() propagation {
	p, ok := propagations[b.spec.Linux.RootfsPropagation]
	switch {
	case p.flag == unix.MS_UNBINDABLE: // concerns the root itself, not what was bound before
		return propagation{unix.MS_PRIVATE, true}
	case ok:
		return propagation{p.flag, true}
	}
	return propagation{unix.MS_SLAVE, true}
}

func propagate(fd int, p propagation) error {
	flags := uint(unix.AT_EMPTY_PATH)
	if p.recursive {
		flags |= unix.AT_RECURSIVE
	}
	if err := unix.MountSetattr(fd, "", flags, &unix.MountAttr{Propagation: p.flag}); err != nil {
		return fmt.Errorf("propagation: %w", err)
	}
	return nil
}

// setAttrs changes the attributes of the mount and, for the recursive options, of all below it.
func (m *mountPoint) setAttrs(fd int) error {
	if err := m.recursive.apply(fd, true); err != nil {
		return fmt.Errorf("recursive attributes: %w", err)
	}
	if err := m.attrs.apply(fd, false); err != nil {
		return fmt.Errorf("attributes: %w", err)
	}
	return nil
}

func (m *mountPoint) propagate(fd int) error {
	for _, p := range m.propagation {
		if err := propagate(fd, p); err != nil {
			return err
		}
	}
	return nil
}

func (m *mountPoint) finish(fd int) error {
	if err := m.setAttrs(fd); err != nil {
		return err
	}
	return m.propagate(fd)
}

// filesystem makes a new file system and attaches it.
func (b *builder) filesystem(m *mountPoint) error {
	fd, ready := b.kit.mount(path.Clean("/" + m.Destination))
	if ready && fd < 0 {
		return nil
	}
	var err error
	if !ready {
		fd, err = b.newMount(m)
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	t, err := b.target(m.Destination, true, fd)
	if err != nil {
		return err
	}
	defer unix.Close(t)
	if m.copyUp {
		if err := copyTree(t, fd); err != nil {
			return fmt.Errorf("tmpcopyup: %w", err)
		}
	}
	if err := attach(fd, t); err != nil {
		return err
	}
	if m.Type == "tmpfs" && m.attrs.set&unix.MOUNT_ATTR_RDONLY != 0 {
		// Later mounts may need mount points on it.
		keep, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return err
		}
		b.readOnlyLater = append(b.readOnlyLater, keep)
	}
	if err := m.recursive.apply(fd, true); err != nil {
		return err
	}
	return m.propagate(fd)
}

// maxOption is the longest value of an option that fsconfig(2) takes.
const maxOption = 255

// pseudo are file systems whose instances may be shared with others, and so are only read-only by their mount.
var pseudo = map[string]bool{"proc": true, "sysfs": true, "devpts": true, "mqueue": true, "tmpfs": true, "cgroup2": true}

func (b *builder) newMount(m *mountPoint) (int, error) {
	if len(m.UIDMappings)+len(m.GIDMappings) > 0 {
		return -1, fmt.Errorf("id mappings on a %s: %w", m.Type, errdefs.ErrNotImplemented)
	}
	attrs := m.attrs.set
	if m.Type == "tmpfs" {
		attrs &^= unix.MOUNT_ATTR_RDONLY
	}
	opts := make([]option, 0, len(m.mountOptions.filesystem)+2)
	if attrs&unix.MOUNT_ATTR_RDONLY != 0 && !pseudo[m.Type] {
		opts = append(opts, option{"ro", ""}) // not only the mount: the disk must not be written to
	}
	for _, o := range m.mountOptions.filesystem {
		if len(o.value) > maxOption {
			return -1, fmt.Errorf("option %s is longer than %d bytes: %w", o.key, maxOption, errdefs.ErrNotImplemented)
		}
		o, err := b.translate(o)
		if err != nil {
			return -1, err
		}
		opts = append(opts, o)
	}
	if l := b.spec.Linux.MountLabel; l != "" && (m.Type == "tmpfs" || m.Type == "devpts" || m.Type == "mqueue") {
		opts = append(opts, option{"context", l})
	}
	if m.Source != "" {
		opts = append(opts, option{"source", m.Source})
	}
	if m.Type == "proc" {
		return b.procFS(opts, attrs)
	}
	return newFS(m.Type, opts, attrs)
}

// translate turns the container's ids in options into the host's: the file systems are made by a thread outside of the
// container's user namespace.
func (b *builder) translate(o option) (option, error) {
	to := map[string]func(uint32) (uint32, error){"uid": b.ids.uid, "gid": b.ids.gid}[o.key]
	if to == nil {
		return o, nil
	}
	id, err := strconv.ParseUint(o.value, 10, 32)
	if err != nil {
		return o, invalid("option %s=%s", o.key, o.value)
	}
	host, err := to(uint32(id))
	return option{o.key, strconv.FormatUint(uint64(host), 10)}, err
}

// procFS makes a procfs of the container's pid namespace. A thread that has only called setns(CLONE_NEWPID) would get
// the host's, without an error: the pid namespace must be given by option (Linux 6.17), or the stub must mount it.
func (b *builder) procFS(opts []option, attrs uint64) (int, error) {
	if !b.engine.stubProc.Load() {
		ns, err := b.stub.pidNS()
		if err != nil {
			return -1, err
		}
		defer ns.Close()
		fd, err := newFS("proc", opts, attrs, fdOption{"pidns", int(ns.Fd())})
		if !errors.Is(err, unix.EINVAL) {
			b.engine.procByNS.Store(err == nil)
			return fd, err
		}
	}
	payload := []byte("proc\x00")
	for _, o := range opts {
		payload = fmt.Appendf(payload, "%s\x00%s\x00", o.key, o.value)
	}
	_, fd, err := b.stub.call(opFSMount, attrs, payload)
	if err != nil {
		closeFD(fd)
		return -1, fmt.Errorf("proc: %w", err)
	}
	b.engine.stubProc.Store(true)
	return fd, nil
}

// target opens the mount point, making it when it is missing, and refuses what would undo the container's isolation.
func (b *builder) target(dest string, dir bool, mount int) (int, error) {
	dest = path.Clean("/" + dest)
	if dest == "/" {
		return -1, invalid("a mount over the root")
	}
	magic := fsMagic(mount)
	plain := magic == unix.PROC_SUPER_MAGIC || magic == unix.SYSFS_MAGIC || dest == "/proc" || dest == "/sys" || dest == "/dev"
	open := ensure
	if plain { // an image must not lead proc, sysfs or /dev elsewhere by a link, where masked paths would miss them
		open = ensurePlain
	}
	t, err := open(b.root, dest, dir)
	if errors.Is(err, unix.ELOOP) && plain {
		return -1, fmt.Errorf("the image has a symbolic link there: %w", errdefs.ErrPermissionDenied)
	}
	if err != nil {
		return -1, fmt.Errorf("mount point: %w", classify(err))
	}
	if isdir, err := isDir(t); err != nil || isdir != dir {
		unix.Close(t)
		return -1, fmt.Errorf("mount point: %w", errors.Join(err, invalid("a directory and a file can't be mounted over each other")))
	}
	isProc := magic == unix.PROC_SUPER_MAGIC
	over := fsMagic(t) == unix.PROC_SUPER_MAGIC || b.kit.masks(t)
	b.remask = b.remask || over
	if over && !overProc[dest] && !(dest == "/proc" && isProc) {
		unix.Close(t)
		return -1, fmt.Errorf("the mount point is inside of proc: %w", errdefs.ErrPermissionDenied)
	}
	if dest == "/proc" && !isProc {
		unix.Close(t)
		return -1, fmt.Errorf("something else than a procfs on /proc: %w", errdefs.ErrPermissionDenied)
	}
	return t, nil
}

// overProc are the files of proc that may be mounted over: those that lxcfs provides, and two more that runc allows.
var overProc = map[string]bool{
	"/proc/cpuinfo": true, "/proc/diskstats": true, "/proc/meminfo": true, "/proc/stat": true, "/proc/swaps": true,
	"/proc/uptime": true, "/proc/loadavg": true, "/proc/slabinfo": true, "/proc/net/dev": true,
	"/proc/sys/kernel/ns_last_pid": true, "/proc/sys/crypto/fips_enabled": true,
}
