package native

import (
	"errors"
	"fmt"
	"os"
	"path"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// defaultDevices are those that every container has (runtime-spec, config-linux.md, "Default Devices").
var defaultDevices = []specs.LinuxDevice{
	{Path: "/dev/null", Type: "c", Major: 1, Minor: 3},
	{Path: "/dev/zero", Type: "c", Major: 1, Minor: 5},
	{Path: "/dev/full", Type: "c", Major: 1, Minor: 7},
	{Path: "/dev/random", Type: "c", Major: 1, Minor: 8},
	{Path: "/dev/urandom", Type: "c", Major: 1, Minor: 9},
	{Path: "/dev/tty", Type: "c", Major: 5, Minor: 0},
}

// defaultLinks are the symbolic links in /dev (runtime-spec, runtime-linux.md, "Dev symbolic links"). devpts has the
// ptmx.
var defaultLinks = []struct{ name, target string }{
	{"fd", "/proc/self/fd"}, {"stdin", "/proc/self/fd/0"}, {"stdout", "/proc/self/fd/1"}, {"stderr", "/proc/self/fd/2"},
	{"ptmx", "pts/ptmx"}, {"core", "/proc/kcore"},
}

// devices fills /dev, unless the whole of it is the host's.
func (b *builder) devices() error {
	for _, m := range b.mounts {
		if m.bind && path.Clean("/"+m.Destination) == "/dev" {
			return nil
		}
	}
	fd, err := b.devDir()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if b.kit.filled(fd) {
		return b.ownDevices()
	}
	spec := map[string]bool{}
	for _, d := range b.spec.Linux.Devices {
		spec[path.Clean("/"+d.Path)] = true
	}
	if err := b.fillDev(fd, spec); err != nil {
		return err
	}
	return b.ownDevices()
}

// fillDev makes what is in every /dev but for the devices that the container has itself.
func (b *builder) fillDev(fd int, own map[string]bool) error {
	var st unix.Stat_t
	fresh := unix.Fstat(fd, &st) == nil && st.Mode&unix.S_ISGID == 0
	for _, d := range defaultDevices {
		if !own[d.Path] {
			if err := b.deviceIn(fd, d, fresh); err != nil {
				return err
			}
		}
	}
	for _, l := range defaultLinks {
		err := unix.Symlinkat(l.target, fd, l.name)
		if errors.Is(err, unix.EEXIST) && l.name == "ptmx" { // never the host's pseudoterminals
			if err = unix.Unlinkat(fd, l.name, 0); err == nil {
				err = unix.Symlinkat(l.target, fd, l.name)
			}
		}
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("/dev/%s: %w", l.name, err)
		}
	}
	return nil
}

// ownDevices makes those that the container asks for.
func (b *builder) ownDevices() error {
	for _, d := range b.spec.Linux.Devices {
		if err := b.device(d); err != nil {
			return err
		}
	}
	return nil
}

// devDir opens /dev, which must not be a link of the image's making.
func (b *builder) devDir() (int, error) {
	fd, err := inRoot(b.root, "/dev", unix.O_DIRECTORY, unix.RESOLVE_NO_SYMLINKS)
	if errors.Is(err, unix.ENOENT) {
		closeMe, missing := ensure(b.root, "/dev", true)
		if missing != nil {
			return -1, classify(missing)
		}
		unix.Close(closeMe)
		fd, err = inRoot(b.root, "/dev", unix.O_DIRECTORY, unix.RESOLVE_NO_SYMLINKS)
	}
	if err != nil {
		return -1, fmt.Errorf("/dev in the image is no plain directory (%w): %w", err, errdefs.ErrPermissionDenied)
	}
	return fd, nil
}

var deviceKind = map[string]uint32{"c": unix.S_IFCHR, "u": unix.S_IFCHR, "b": unix.S_IFBLK, "p": unix.S_IFIFO}

// device makes one node with exactly the mode and owner asked for.
func (b *builder) device(d specs.LinuxDevice) error {
	parent, err := ensure(b.root, path.Dir(path.Clean("/"+d.Path)), true)
	if err != nil {
		return fmt.Errorf("%s: %w", d.Path, classify(err))
	}
	defer unix.Close(parent)
	if fs := fsMagic(parent); fs == unix.PROC_SUPER_MAGIC || fs == unix.SYSFS_MAGIC {
		return invalid("%s is inside of proc or sysfs", d.Path)
	}
	return b.deviceIn(parent, d, false)
}

// deviceIn makes a node in its directory; fresh: what is made there is root's.
func (b *builder) deviceIn(parent int, d specs.LinuxDevice, fresh bool) error {
	kind, ok := deviceKind[d.Type]
	if !ok {
		return invalid("%s: unknown type %q", d.Path, d.Type)
	}
	mode := uint32(0o666)
	if d.FileMode != nil {
		mode = uint32(*d.FileMode & os.ModePerm)
	}
	var uid, gid uint32
	var err error
	if d.UID != nil {
		uid = *d.UID
	}
	if d.GID != nil {
		gid = *d.GID
	}
	if uid, err = b.ids.uid(uid); err == nil {
		gid, err = b.ids.gid(gid)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", d.Path, err)
	}
	p := path.Clean("/" + d.Path)
	rdev := unix.Mkdev(uint32(d.Major), uint32(d.Minor))
	err = b.node(parent, path.Base(p), kind, mode, rdev)
	switch {
	case errors.Is(err, unix.EBUSY):
		return nil
	case err == nil && fresh && uid|gid == 0 && !b.ns.own(unix.CLONE_NEWUSER): // as it is
	case err == nil:
		err = unix.Fchownat(parent, path.Base(p), int(uid), int(gid), unix.AT_SYMLINK_NOFOLLOW)
	case errors.Is(err, unix.EPERM) && kind != unix.S_IFIFO:
		// No right to make devices (cri-server itself runs in a user namespace): take the host's.
		err = b.bindNode(parent, path.Base(p), kind, rdev, d.Path)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", d.Path, err)
	}
	return nil
}

// node makes a device node. What the image has put in its place is replaced, unless it is a directory. What the spec mounts
// there stays (EBUSY): a volume may stand for a device.
func (b *builder) node(dir int, name string, kind, mode uint32, rdev uint64) error {
	err := unix.Mknodat(dir, name, kind|mode, int(rdev))
	if errors.Is(err, unix.EEXIST) {
		if err = unix.Unlinkat(dir, name, 0); err == nil {
			err = unix.Mknodat(dir, name, kind|mode, int(rdev))
		}
	}
	return err
}

func (b *builder) bindNode(dir int, name string, kind uint32, rdev uint64, host string) error {
	src, err := unix.OpenTree(unix.AT_FDCWD, host, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return fmt.Errorf("may not be made, nor bound from the host: %w", err)
	}
	defer unix.Close(src)
	if !isDevice(src, kind, rdev) {
		return fmt.Errorf("may not be made, and the host's %s is another device: %w", host, errdefs.ErrPermissionDenied)
	}
	if err := deviceOnly.apply(src, false); err != nil {
		return err
	}
	t, err := create(dir, name, false)
	if err != nil {
		return err
	}
	defer unix.Close(t)
	return attach(src, t)
}
