package snapshot

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/imagestore/unpack"
	"github.com/seed-9a14075a/cri-server/pkg/rootfs"
)

// overlay stacks the layers' directories.
type overlay struct {
	marks   unpack.MarkForm
	options []string
	// writable are further options of overlays that are written to.
	writable []string
}

// unsynced keeps the unmounting of a container's root from writing out all that is dirty on the file system below, whoever
// wrote it: the last process of a container unmounts it, and its end waits for that, on a busy disk for seconds. The price is
// that fsync(2) on the container's own layer does nothing. That layer doesn't outlive the machine's run: after a power cut
// no container is started on it again. Volumes are no part of it. Linux 5.10; Documentation/filesystems/overlayfs.rst.
const unsynced = "volatile"

// maxLower is overlayfs's OVL_MAX_STACK (fs/overlayfs/params.h).
const maxLower = 500

func (overlay) Name() string                 { return "overlay" }
func (o overlay) Marks() unpack.MarkForm     { return o.marks }
func (overlay) Stacks() bool                 { return true }
func (overlay) upper(dir string) string      { return filepath.Join(dir, "fs") }
func (overlay) workDir(dir string) string    { return filepath.Join(dir, "work") }
func (overlay) emptyLower(dir string) string { return filepath.Join(dir, "empty") }

// Discard implements Discarder: what a container leaves that wrote nothing, by name. Listing each directory would be twice the work.
func (o overlay) Discard(dir string) {
	given := o.workDir(dir)
	own := filepath.Join(given, "work")        // which a mount makes in the one that it is given
	incompat := filepath.Join(own, "incompat") // the mark of a volatile mount, see unsynced
	mark := filepath.Join(incompat, "volatile")
	_ = unix.Unlink(filepath.Join(mark, "dirty"))
	for _, d := range []string{mark, incompat, own, given, o.upper(dir)} {
		_ = unix.Rmdir(d)
	}
}

// Usage implements Driver.
func (o overlay) Usage(dir string) (bytes, inodes int64, err error) { return treeUsage(o.upper(dir)) }

func (o overlay) Prepare(_ context.Context, dir string, layers []Layer) error {
	lower := lowerDirs(layers)
	if len(lower) > maxLower {
		return fmt.Errorf("%d layers, overlayfs stacks %d: %w", len(lower), maxLower, errdefs.ErrFailedPrecondition)
	}
	if len(layers) == 0 { // an overlay needs a lower directory
		if err := os.Mkdir(o.emptyLower(dir), 0o755); err != nil {
			return err
		}
	}
	if err := os.Mkdir(o.workDir(dir), 0o711); err != nil {
		return err
	}
	upper := o.upper(dir)
	if err := os.Mkdir(upper, 0o755); err != nil {
		return err
	}
	f, err := findFixes(layers)
	if err != nil {
		return err
	}
	if err := f.apply(upper, layers); err != nil {
		return err
	}
	return rootAttributes(upper, layers)
}

func (o overlay) Rootfs(dir string, layers []Layer) rootfs.Rootfs {
	r := rootfs.Rootfs{Lower: lowerDirs(layers), Upper: o.upper(dir), Work: o.workDir(dir), Options: slices.Concat(o.options, o.writable)}
	if len(r.Lower) == 0 {
		r.Lower = []string{o.emptyLower(dir)}
	}
	return r
}

func (o overlay) View(layers []Layer) (rootfs.Rootfs, bool) {
	lower := lowerDirs(layers)
	if f, err := findFixes(layers); err != nil || !f.empty() {
		return rootfs.Rootfs{}, false
	}
	switch {
	case len(lower) == 0 || len(lower) > maxLower:
		return rootfs.Rootfs{}, false
	case len(lower) == 1: // nothing to merge; whiteouts of a bottom layer hide nothing, but they would be seen
		m, err := layers[0].Marks()
		if err != nil || len(m.Whiteouts) > 0 {
			return rootfs.Rootfs{}, false
		}
		return rootfs.Rootfs{Path: lower[0]}, true
	}
	return rootfs.Rootfs{Lower: lower, Options: slices.Clone(o.options)}, true
}

// lowerDirs is topmost first, as overlayfs wants them. Of a layer that stands in the stack more than once only the
// topmost counts: it holds all that the others hold, and overlayfs refuses one directory twice.
func lowerDirs(layers []Layer) []string {
	out := make([]string, 0, len(layers))
	for _, l := range slices.Backward(layers) {
		if !slices.Contains(out, l.FS) {
			out = append(out, l.FS)
		}
	}
	return out
}

// rootAttributes gives dir the mode, owner and times of the image's root: those of the topmost layer with an entry for it.
func rootAttributes(dir string, layers []Layer) error {
	for _, l := range slices.Backward(layers) {
		m, err := l.Marks()
		if err != nil {
			return err
		}
		if slices.Contains(m.Implied, unpack.Path(".")) {
			continue
		}
		var st unix.Stat_t
		if err := unix.Stat(l.FS, &st); err != nil {
			return err
		}
		return giveAttributes(dir, st.Uid, st.Gid, st.Mode)
	}
	return giveAttributes(dir, uint32(os.Geteuid()), uint32(os.Getegid()), 0o755)
}

// giveAttributes changes what is not so already, which is nothing for most images: a look is less than a change of an inode.
func giveAttributes(dir string, uid, gid, mode uint32) error {
	var have unix.Stat_t
	if err := unix.Stat(dir, &have); err != nil {
		return err
	}
	owned := have.Uid == uid && have.Gid == gid
	if !owned {
		if err := unix.Chown(dir, int(uid), int(gid)); err != nil && os.Geteuid() == 0 {
			return err
		}
	}
	if owned && have.Mode&0o7777 == mode&0o7777 {
		return nil
	}
	return unix.Chmod(dir, mode&0o7777) // after a change of the owner, which may take bits away (chown(2))
}
