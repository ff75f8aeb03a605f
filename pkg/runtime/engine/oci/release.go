package oci

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/mountpoint"
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
	// There may be something in the directory that it was mounted on: a runtime whose create was cut short goes on for a moment,
	// and makes mount points where the root has just gone. What is mounted there does not go: should the unmount have missed
	// something, its files are not ours to delete.
	if err := mountpoint.RemoveAll(c.rootfs()); err != nil {
		return err
	}
	for _, name := range []string{"config.json", "init.pid"} {
		if err := os.Remove(filepath.Join(c.dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}
