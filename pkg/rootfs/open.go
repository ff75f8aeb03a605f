package rootfs

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Options say how Open mounts.
type Options struct {
	// ReadOnly makes the mount read-only even where there is an Upper.
	ReadOnly bool
	// UserNS is a user namespace whose id mapping the layers get (Linux 5.19 for overlay layers); nil for none. The
	// caller keeps it.
	UserNS *os.File
	// RootUID and RootGID are the host's ids of UserNS's root. They count only with UserNS.
	RootUID, RootGID uint32
	// Label is the SELinux context of the mount ("" for none).
	Label string
	// OwnDir: Open is called on a locked thread whose working directory is its own (unshare(CLONE_FS)), and may be moved.
	OwnDir bool
}

// Open returns a detached mount of r as an O_PATH descriptor. The mount goes away with the last descriptor of it unless
// it was moved into a mount namespace (move_mount(2)). The caller closes the file. It needs CAP_SYS_ADMIN.
func (r Rootfs) Open(o Options) (*os.File, error) {
	if err := r.Validate(); err != nil {
		return nil, err
	}
	fd, err := r.open(o)
	if err != nil {
		return nil, fmt.Errorf("rootfs: %w", err)
	}
	return os.NewFile(uintptr(fd), "rootfs"), nil
}

func (r Rootfs) open(o Options) (int, error) {
	if dir := r.single(); dir != "" {
		if o.Label != "" { // a mount of an existing file system keeps its files' labels
			return -1, fmt.Errorf("SELinux label on the directory %s: %w", dir, errdefs.ErrNotImplemented)
		}
		fd, err := clone(unix.AT_FDCWD, dir, 0, o)
		if err != nil {
			return -1, err
		}
		if o.ReadOnly || r.Path == "" {
			if err := setReadOnly(fd); err != nil {
				unix.Close(fd)
				return -1, fmt.Errorf("read-only: %w", err)
			}
		}
		return fd, nil
	}
	if r.Fuse != "" {
		return r.fuse(o)
	}
	fd, err := r.stacked(o)
	if errors.Is(err, unix.EINVAL) && r.forgetVolatile() { // of whichever way
		fd, err = r.stacked(o)
	}
	if errors.Is(err, unix.EIO) && r.volatile() {
		_ = r.forgetVolatile()
		fd, err = r.synced().stacked(o)
	}
	return fd, err
}

// stacked makes the overlay in the way that the kernel knows.
func (r Rootfs) stacked(o Options) (int, error) {
	byNewAPI := r.overlayByFD
	// An id mapping belongs to a clone; overlayfs takes backslashes in names for escapes.
	if o.OwnDir && o.UserNS == nil && !strings.Contains(r.Upper+r.Work, `\`) {
		byNewAPI = r.overlayByName
	}
	fd, err := byNewAPI(o)
	// EINVAL: no "lowerdir+", no descriptors, or no clones as layers; ENODEV, EOPNOTSUPP: no fsopen for overlayfs.
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EOPNOTSUPP) {
		old, oldErr := r.overlayByMount(o)
		if oldErr == nil {
			return old, nil
		}
		return -1, errors.Join(err, oldErr)
	}
	return fd, err
}

// single is the directory that serves as the whole root: overlayfs wants at least two layers where there is no upper.
func (r Rootfs) single() string {
	if r.Path != "" {
		return r.Path
	}
	if len(r.Lower) == 1 && r.Upper == "" {
		return r.Lower[0]
	}
	return ""
}

// MountAt mounts r at the directory target in this process's mount namespace. The caller unmounts it.
func (r Rootfs) MountAt(target string, o Options) error {
	f, err := r.Open(o)
	if err != nil {
		return err
	}
	defer f.Close()
	err = unix.MoveMount(int(f.Fd()), "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("rootfs: attach at %s: %w", target, err)
	}
	return nil
}

// View opens r read-only for reading its files through an os.Root, which follows no link out of it. Upper counts: what
// a container has written is seen. The caller closes it; nothing is left mounted.
func (r Rootfs) View() (*os.Root, error) {
	f, err := r.Open(Options{ReadOnly: true})
	if err != nil {
		return nil, err
	}
	defer f.Close() // the root keeps the mount alive
	root, err := os.OpenRoot(fdPath(int(f.Fd())))
	if err != nil {
		return nil, fmt.Errorf("rootfs: view: %w", err)
	}
	return root, nil
}

// clone makes a detached clone of the mount at a directory, with o's id mapping.
func clone(at int, path string, flags uint, o Options) (int, error) {
	fd, err := unix.OpenTree(at, path, flags|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("open_tree %s: %w", path, err)
	}
	if o.UserNS == nil {
		return fd, nil
	}
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(o.UserNS.Fd())}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, attr); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("id-mapped mount of %s (its file system may not support them): %w", path, err)
	}
	return fd, nil
}

func setReadOnly(fd int) error {
	return unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
}

func fdPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

// options returns r's overlay options as key and value ("" for a flag), with the label.
func (r Rootfs) options(o Options) [][2]string {
	opts := [][2]string{}
	for _, s := range r.Options {
		if s == volatile && r.Upper == "" { // the kernel would say in its log that it means nothing
			continue
		}
		k, v, _ := strings.Cut(s, "=")
		opts = append(opts, [2]string{k, v})
	}
	if o.Label != "" {
		opts = append(opts, [2]string{"context", o.Label})
	}
	return opts
}

// asRoot calls f with the file system ids of the user namespace's root, and all capabilities. Who creates an overlay
// lends it its credentials, and uid 0 of the host has no place in an id-mapped upper layer: every write would fail with
// EOVERFLOW, and overlayfs would, without saying so, turn read-only. Ids and securebits belong to the thread.
func (o Options) asRoot(f func() error) error {
	if o.UserNS == nil {
		return f()
	}
	runtime.LockOSThread()
	uid, gid, err := setFSIDs(int(o.RootUID), int(o.RootGID))
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	err = f()
	if _, _, back := setFSIDs(uid, gid); back != nil {
		return errors.Join(err, back) // the thread stays locked, and ends with its goroutine
	}
	runtime.UnlockOSThread()
	return err
}

// setFSIDs sets the thread's file system ids and returns the old ones. With SECBIT_NO_SETUID_FIXUP it keeps its
// capabilities (capabilities(7)).
func setFSIDs(uid, gid int) (oldUID, oldGID int, err error) {
	const noSetuidFixup = 1 << 2
	bits, err := unix.PrctlRetInt(unix.PR_GET_SECUREBITS, 0, 0, 0, 0)
	if err == nil && bits&noSetuidFixup == 0 {
		if err = unix.Prctl(unix.PR_SET_SECUREBITS, uintptr(bits|noSetuidFixup), 0, 0, 0); err == nil {
			defer func() { _ = unix.Prctl(unix.PR_SET_SECUREBITS, uintptr(bits), 0, 0, 0) }()
		}
	}
	if err != nil {
		return 0, 0, fmt.Errorf("securebits: %w", err)
	}
	if oldGID, err = unix.SetfsgidRetGid(gid); err == nil {
		oldUID, err = unix.SetfsuidRetUid(uid)
	}
	if err == nil {
		if now, _ := unix.SetfsuidRetUid(-1); now != uid {
			err = unix.EPERM
		}
	}
	if err != nil {
		return 0, 0, fmt.Errorf("setfsuid %d: %w", uid, err)
	}
	return oldUID, oldGID, nil
}
