package oci

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// release unmounts the root and removes the bundle. It may be repeated.
func (c *container) release() error {
	for { // mounts may be stacked
		// Lazily: a process of somebody else may be looking at it, and that must not keep the pod.
		err := unix.Unmount(c.rootfs(), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) { // umount(2): not a mount point; gone
			break
		}
		if err != nil {
			return fmt.Errorf("unmount %s: %w", c.rootfs(), err)
		}
	}
	if err := removeBare(c.rootfs()); err != nil {
		return err
	}
	for _, name := range []string{"config.json", "init.pid"} {
		if err := os.Remove(filepath.Join(c.dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// removeBare removes the directory that the root was mounted on. There may be something in it: a runtime whose create was cut
// short goes on for a moment, and makes mount points where the root has just gone. What is mounted there
// does not go: should the unmount have missed something, its files are not ours to delete.
func removeBare(dir string) error {
	var st unix.Statx_t // statx(2) knows mount points since Linux 5.8
	err := unix.Statx(unix.AT_FDCWD, dir, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, unix.STATX_TYPE, &st)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return &os.PathError{Op: "statx", Path: dir, Err: err}
	}
	if st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0 {
		return fmt.Errorf("%s is still mounted: %w", dir, unix.EBUSY)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			if err := removeBare(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
