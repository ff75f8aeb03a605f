package monitor

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/mountpoint"
)

// removeLater removes the directory of a container that is going, and those of others that an earlier call could not
// remove: they are in nobody's way, and stay until a later call can.
func (s *Server) removeLater(dir string) {
	s.mu.Lock()
	dirs := []string{dir}
	for _, d := range s.left {
		if s.containers[filepath.Base(d)] == nil { // there may be another of that id since
			dirs = append(dirs, d)
		}
	}
	s.left = nil
	s.mu.Unlock()
	for _, d := range dirs {
		if err := removeDir(d); err != nil {
			s.log.Warn("container directory stays until the next removal", "dir", d, "err", err)
			s.mu.Lock()
			s.left = append(s.left, d)
			s.mu.Unlock()
		}
	}
}

// removeDir removes an engine's directory, and never what is mounted in it: a mount that an OCI runtime or a crash left
// there is detached first, or else stays with all above it. It is no error if there is no such directory.
func removeDir(dir string) error {
	if err := unix.Rmdir(dir); err == nil || err == unix.ENOENT { // that of the native engine is empty
		return nil
	}
	entries, err := os.ReadDir(dir)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		for { // mounts may be stacked
			mounted, err := mountpoint.Is(path)
			if err != nil {
				return err
			}
			if !mounted {
				break
			}
			if err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
				return &os.PathError{Op: "umount", Path: path, Err: err}
			}
		}
		if e.IsDir() {
			err = removeDir(path)
		} else {
			err = os.Remove(path)
		}
		if err != nil {
			return err
		}
	}
	return os.Remove(dir)
}
