package unpack

import (
	"archive/tar"
	"errors"
	"fmt"
	"sort"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	paxXattr = "SCHILY.xattr."
)

// attributes sets owner, mode and xattrs of an open file or directory. The order matters: chown clears setuid bits and
// capabilities (chown(2)).
func (a *applier) attributes(fd int, hdr *tar.Header) error {
	uid, gid, err := a.owner(hdr)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	mode := uint32(hdr.Mode & 0o7777)
	chown := uid >= 0 && (int64(st.Uid) != int64(uid) || int64(st.Gid) != int64(gid))
	if chown {
		if err := unix.Fchown(fd, uid, gid); err != nil {
			return fmt.Errorf("set owner %d:%d: %w", uid, gid, err)
		}
	}
	if chown && mode&0o6000 != 0 || st.Mode&0o7777 != mode {
		if err := unix.Fchmod(fd, mode); err != nil {
			return fmt.Errorf("set mode: %w", err)
		}
	}
	return a.xattrs(hdr, func(name string, value []byte) error { return unix.Fsetxattr(fd, name, value, 0) })
}

// finishNode sets what attributes sets, for files that can't be opened: symbolic links, fifos, devices.
func (a *applier) finishNode(at place, hdr *tar.Header) error {
	uid, gid, err := a.owner(hdr)
	if err != nil {
		return err
	}
	if uid >= 0 {
		if err := unix.Fchownat(at.fd, at.base, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return fmt.Errorf("set owner %d:%d: %w", uid, gid, err)
		}
		if hdr.Typeflag != tar.TypeSymlink {
			if err := unix.Fchmodat(at.fd, at.base, uint32(hdr.Mode&0o7777), 0); err != nil {
				return fmt.Errorf("set mode: %w", err)
			}
		}
	}
	// lsetxattr doesn't follow the last component, and the one before it is a descriptor of ours.
	path := "/proc/self/fd/" + strconv.Itoa(at.fd) + "/" + at.base
	if err := a.xattrs(hdr, func(name string, value []byte) error { return unix.Lsetxattr(path, name, value, 0) }); err != nil {
		return err
	}
	ts := times(hdr)
	if err := unix.UtimesNanoAt(at.fd, at.base, ts[:], unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Errorf("set times: %w", err)
	}
	a.inodes++
	var st unix.Stat_t
	if err := unix.Fstatat(at.fd, at.base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	a.bytes += st.Blocks * 512
	return nil
}

// owner returns the numeric owner, or -1 when owners are not kept. 2^32-1 is no id: chown(2) takes it for "unchanged".
func (a *applier) owner(hdr *tar.Header) (uid, gid int, err error) {
	const last = 1<<32 - 2
	if hdr.Uid < 0 || hdr.Gid < 0 || int64(hdr.Uid) > last || int64(hdr.Gid) > last {
		return 0, 0, fmt.Errorf("owner %d:%d: %w", hdr.Uid, hdr.Gid, errdefs.ErrInvalidArgument)
	}
	if a.opt.SkipOwner {
		return -1, -1, nil
	}
	return hdr.Uid, hdr.Gid, nil
}

// xattrs sets the entry's extended attributes. overlayfs's own are refused: they would let a layer point the kernel at
// other files of the merged tree. Labels of the build host's security modules mean nothing here and are left out.
func (a *applier) xattrs(hdr *tar.Header, set func(string, []byte) error) error {
	if len(hdr.PAXRecords) == 0 {
		return nil
	}
	var names []string
	total := 0
	for k, v := range hdr.PAXRecords {
		if name, ok := strings.CutPrefix(k, paxXattr); ok {
			names = append(names, name)
			total += len(name) + len(v)
		}
	}
	if l := a.opt.Limits.XattrBytes; l > 0 && total > l {
		return fmt.Errorf("%d bytes of xattrs: %w", total, errdefs.ErrResourceExhausted)
	}
	sort.Strings(names)
	for _, name := range names {
		switch {
		case strings.HasPrefix(name, "trusted.overlay.") || strings.HasPrefix(name, "user.overlay."):
			return fmt.Errorf("xattr %q is overlayfs's own: %w", name, errdefs.ErrInvalidArgument)
		case name == "" || strings.IndexByte(name, 0) >= 0:
			return fmt.Errorf("xattr name %q: %w", name, errdefs.ErrInvalidArgument)
		case strings.HasPrefix(name, "security.") && name != "security.capability" && name != "security.ima" && name != "security.evm":
			continue
		}
		err := set(name, []byte(hdr.PAXRecords[paxXattr+name]))
		switch {
		case err == nil:
		case name == "security.capability":
			return fmt.Errorf("set %s: %w", name, err)
		case errors.Is(err, unix.ENOTSUP), errors.Is(err, unix.EPERM):
			// The file system can't hold it, or user.* isn't allowed on this kind of file (xattr(7)).
		default:
			return fmt.Errorf("set xattr %q: %w", name, err)
		}
	}
	return nil
}

// futimens is futimens(3): utimensat(2) with no path.
func futimens(fd int, ts [2]unix.Timespec) error {
	_, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(ptr(&ts)), 0, 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
