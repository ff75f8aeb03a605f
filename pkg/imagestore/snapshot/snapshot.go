// Package snapshot makes root file systems out of unpacked layers. A Driver is chosen by probing what the store's file
// system and our privileges allow; all pass one test suite.
//
//	overlay         layers stay where they are; the container's own files are in an upper directory. Costs three mkdir.
//	btrfs           the layers are laid over each other once per image in a subvolume, sharing their extents; a container
//	                gets a snapshot of that. Costs one commit of the file system.
//	fuse-overlayfs  as overlay, in a process per mount: where the kernel's overlayfs refuses the store's file system.
//	copy            the layers are copied into one directory. Works on any file system and without the right to mount.
//
// A driver mounts nothing on the host: it returns a description (package rootfs).
//
// What is not here, and why:
//
//   - ZFS. Its kernel module is no part of Linux and can't be tested with it. overlayfs takes ZFS as its upper file system since
//     OpenZFS 2.2, so overlay is chosen there; fuse-overlayfs or copy before that.
//   - devicemapper. Thin volumes need a pool that somebody sizes and watches, lose every container when it fills up, share no page
//     cache between containers of one image, and take a device and a mount per layer. Docker has removed it.
//   - AUFS. It never became a part of Linux, and no distribution's kernel has it any more; overlay does what it did.
package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/imagestore/unpack"
	"github.com/seed-9a14075a/cri-server/pkg/rootfs"
)

// Layer is an unpacked layer.
type Layer struct {
	// FS is the directory with its files.
	FS string
	// Marks reads what the layer says about those below it.
	Marks func() (unpack.Marks, error)
}

// Driver makes snapshots. Safe for concurrent use on different directories.
type Driver interface {
	// Name is what configuration and status call it.
	Name() string
	// Prepare fills dir, a directory of the store with nothing of a snapshot but, perhaps, the record, for a writable snapshot of the layers, bottom first. On error the
	// caller removes dir.
	Prepare(ctx context.Context, dir string, layers []Layer) error
	// Rootfs describes the snapshot that Prepare made in dir, wherever dir was moved since.
	Rootfs(dir string, layers []Layer) rootfs.Rootfs
	// Usage counts what the container wrote into the snapshot in dir, in bytes as allocated on disk and inodes.
	Usage(dir string) (bytes, inodes int64, err error)
	// View describes the layers read-only; false if that takes a snapshot of its own.
	View(layers []Layer) (rootfs.Rootfs, bool)
	// Marks is the form in which layers are to be unpacked. Stacks: the driver relies on marks of that form in them.
	Marks() unpack.MarkForm
	Stacks() bool
}

// Cloner is a Driver whose snapshots are made of another one much faster than of layers.
type Cloner interface {
	// Clone fills dir as Prepare does, from base, where a snapshot of the same layers is in which nothing was written.
	Clone(dir, base string) error
}

// Discarder is a Driver that removes snapshots faster than file by file.
type Discarder interface {
	// Discard may remove what is in dir, as far as that goes fast; the caller removes dir and what is left.
	Discard(dir string)
}

func treeUsage(root string) (bytes, inodes int64, err error) {
	fd, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, 0, err
	}
	defer unix.Close(fd)
	return unpack.UsageAt(fd)
}

// Names are those that Open knows, in the order in which "auto" tries them.
var Names = []string{"overlay", "btrfs", "fuse-overlayfs", "copy"}

// Open returns the driver called name for a store at root: one of Names, or with "auto" (or "") the first of them that
// works. The reason says why.
func Open(name, root string) (d Driver, reason string, err error) {
	if name == "" {
		name = "auto"
	}
	if name != "auto" && !slices.Contains(Names, name) {
		return nil, "", fmt.Errorf("snapshotter %q: not one of auto, %s: %w", name, strings.Join(Names, ", "), errdefs.ErrInvalidArgument)
	}
	form := probeMarks(root)
	var not []string
	for _, n := range Names {
		if name != "auto" && n != name {
			continue
		}
		d, err := probe(n, root, form)
		switch {
		case err == nil && name == n:
			return d, "configured", nil
		case err == nil:
			return d, strings.Join(append(not, n+": works on "+root), "; "), nil
		case name == n:
			return nil, "", fmt.Errorf("snapshotter %s: %w: %w", name, err, errdefs.ErrFailedPrecondition)
		}
		not = append(not, n+": "+err.Error())
	}
	return nil, "", fmt.Errorf("no snapshotter: %s: %w", strings.Join(not, "; "), errdefs.ErrFailedPrecondition)
}

// probe makes the driver n, if it works on root.
func probe(n, root string, form unpack.MarkForm) (Driver, error) {
	switch n {
	case "overlay":
		return probeOverlay(root, form)
	case "btrfs":
		return probeBtrfs(root, form)
	case "fuse-overlayfs":
		return probeFuse(root, form)
	}
	return copyDriver{marks: form}, nil
}

// probeMarks finds out whether we may make overlayfs's whiteouts and opaque marks.
func probeMarks(root string) unpack.MarkForm {
	dir, err := os.MkdirTemp(root, "probe-")
	if err != nil {
		return unpack.MarksNone
	}
	defer os.RemoveAll(dir)
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return unpack.MarksNone
	}
	defer unix.Close(fd)
	if unpack.MakeWhiteout(fd, "w", unpack.MarksTrusted) != nil {
		return unpack.MarksNone
	}
	for _, form := range []unpack.MarkForm{unpack.MarksTrusted, unpack.MarksUser} {
		if unpack.MakeOpaque(fd, form) == nil {
			return form
		}
	}
	return unpack.MarksNone
}

// probeOverlay tries overlayfs, with the options that it may have.
func probeOverlay(root string, form unpack.MarkForm) (Driver, error) {
	if form == unpack.MarksNone {
		return nil, fmt.Errorf("whiteouts can't be made in %s", root)
	}
	d := overlay{marks: form, writable: []string{unsynced}}
	if form == unpack.MarksUser {
		d.options = []string{"userxattr"}
	}
	err := d.try(root)
	if err == nil {
		return d, nil
	}
	plain := d
	plain.writable = nil
	if perr := plain.try(root); perr != nil || !errors.Is(err, unix.EIO) {
		return plain, perr
	}
	return d, nil // something could not be written, which nobody has been told yet: package rootfs knows what to do
}

// try mounts an overlay on nothing: a detached mount that goes with its descriptor, fsmount(2), Linux 5.2.
func (o overlay) try(root string) error {
	dir, err := os.MkdirTemp(root, "probe-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	lower := filepath.Join(dir, "lower")
	for _, sub := range []string{lower, o.upper(dir), o.workDir(dir)} {
		if err := os.Mkdir(sub, 0o755); err != nil {
			return err
		}
	}
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("fsopen: %w", err)
	}
	defer unix.Close(fs)
	for _, kv := range [][2]string{{"lowerdir", lower}, {"upperdir", o.upper(dir)}, {"workdir", o.workDir(dir)}} {
		if err := unix.FsconfigSetString(fs, kv[0], kv[1]); err != nil {
			return fmt.Errorf("option %s: %w", kv[0], err)
		}
	}
	for _, flag := range slices.Concat(o.options, o.writable) {
		if err := unix.FsconfigSetFlag(fs, flag); err != nil {
			return fmt.Errorf("option %s: %w", flag, err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	mnt, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("fsmount: %w", err)
	}
	return unix.Close(mnt)
}
