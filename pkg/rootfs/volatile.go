package rootfs

import (
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// volatile is the option of overlays that sync nothing, Documentation/filesystems/overlayfs.rst.
const volatile = "volatile"

func (r Rootfs) volatile() bool { return r.Upper != "" && slices.Contains(r.Options, volatile) }

// synced is r without the option. After an error in writing to the file system below, of whatever was to be written, overlayfs
// mounts nothing "volatile" (EIO) until somebody has been told of it by syncfs(2), which may be never: no container could be
// made on the node any more.
func (r Rootfs) synced() Rootfs {
	r.Options = slices.DeleteFunc(slices.Clone(r.Options), func(o string) bool { return o == volatile })
	return r
}

// forgetVolatile removes the mark that an earlier mount with the option left in the work directory, and tells
// whether there was one. overlayfs refuses to mount such layers again, as they may lack what was not synced when the machine
// went down. No description is used for longer than the machine runs: what comes here again is a container that was half built
// when cri-monitor died.
func (r Rootfs) forgetVolatile() bool {
	if !r.volatile() {
		return false
	}
	incompat := filepath.Join(r.Work, "work", "incompat")
	mark := filepath.Join(incompat, "volatile")
	_ = unix.Unlink(filepath.Join(mark, "dirty"))
	return unix.Rmdir(mark) == nil && unix.Rmdir(incompat) == nil
}
