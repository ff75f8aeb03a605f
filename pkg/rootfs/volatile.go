package rootfs

import (
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// forgetVolatile removes the mark that an earlier mount with the option "volatile" left in the work directory, and tells
// whether there was one. overlayfs refuses to mount such layers again, as they may lack what was not synced when the machine
// went down. No description is used for longer than the machine runs: what comes here again is a container that was half built
// when cri-monitor died. Documentation/filesystems/overlayfs.rst, volatile mount.
func (r Rootfs) forgetVolatile() bool {
	if r.Upper == "" || !slices.Contains(r.Options, "volatile") {
		return false
	}
	incompat := filepath.Join(r.Work, "work", "incompat")
	mark := filepath.Join(incompat, "volatile")
	_ = unix.Unlink(filepath.Join(mark, "dirty"))
	return unix.Rmdir(mark) == nil && unix.Rmdir(incompat) == nil
}
