// Package mountpoint removes directories without what is mounted in them.
package mountpoint

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Is tells whether something is mounted on path, which is not followed if it is a link. ErrNotImplemented where the kernel does not
// tell: statx(2) knows since Linux 5.8, and says so in its mask.
func Is(path string) (bool, error) {
	is, _, err := look(path)
	return is, err
}

func look(path string) (is, dir bool, err error) {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_TYPE, &st); err != nil {
		return false, false, &os.PathError{Op: "statx", Path: path, Err: err}
	}
	is, err = root(&st)
	if err != nil {
		err = fmt.Errorf("%s: %w", path, err)
	}
	return is, st.Mode&unix.S_IFMT == unix.S_IFDIR, err
}

// root tells by the answer of statx(2). An attribute that is not in the mask says nothing.
func root(st *unix.Statx_t) (bool, error) {
	if st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return false, fmt.Errorf("the kernel does not tell whether something is mounted there: %w", errdefs.ErrNotImplemented)
	}
	return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
}

// RemoveAll removes path with everything in it, but nothing that is mounted there or below: then it is EBUSY, and what stands in
// the way stays. It is no error if there is nothing.
func RemoveAll(path string) error {
	mounted, dir, err := look(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if mounted {
		return fmt.Errorf("%s is still mounted: %w", path, unix.EBUSY)
	}
	if dir {
		entries, err := os.ReadDir(path)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := RemoveAll(filepath.Join(path, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
