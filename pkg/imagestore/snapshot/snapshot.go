// Package snapshot makes root file systems out of unpacked layers. A Driver is chosen by probing what the store's file
// system and our privileges allow; all pass one test suite.
//
//	overlay  layers stay where they are; the container's own files are in an upper directory. Costs three mkdir.
//	copy     the layers are copied into one directory. Works on any file system and without the right to mount.
//
// A driver mounts nothing on the host: it returns a description (package rootfs).
package snapshot

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

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
	// Prepare fills dir, an empty directory of the store, for a writable snapshot of the layers, bottom first. On error the
	// caller removes dir.
	Prepare(ctx context.Context, dir string, layers []Layer) error
	// Rootfs describes the snapshot that Prepare made in dir, wherever dir was moved since.
	Rootfs(dir string, layers []Layer) rootfs.Rootfs
	// Writable is the directory below dir that holds what the container wrote.
	Writable(dir string) string
	// View describes the layers read-only; false if that takes a snapshot of its own.
	View(layers []Layer) (rootfs.Rootfs, bool)
	// Marks is the form in which layers are to be unpacked.
	Marks() unpack.MarkForm
}

// Open returns the driver called name for a store at root: "overlay", "copy", or "auto" (or "") for the first of these
// that works. The reason says why.
func Open(name, root string) (d Driver, reason string, err error) {
	switch name {
	case "copy":
		return copyDriver{marks: probeMarks(root)}, "configured", nil
	case "overlay", "auto", "":
	default:
		return nil, "", fmt.Errorf("snapshotter %q: not one of auto, overlay, copy: %w", name, errdefs.ErrInvalidArgument)
	}
	form := probeMarks(root)
	o, err := probeOverlay(root, form)
	switch {
	case err == nil && name == "overlay":
		return o, "configured", nil
	case err == nil:
		return o, "overlayfs works on " + root, nil
	case name == "overlay":
		return nil, "", fmt.Errorf("snapshotter overlay: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	return copyDriver{marks: form}, "no overlayfs: " + err.Error(), nil
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
	if unpack.MakeWhiteout(fd, "w") != nil {
		return unpack.MarksNone
	}
	for _, form := range []unpack.MarkForm{unpack.MarksTrusted, unpack.MarksUser} {
		if unpack.MakeOpaque(fd, form) == nil {
			return form
		}
	}
	return unpack.MarksNone
}

// probeOverlay mounts an overlay on nothing: a detached mount that goes with its descriptor, fsmount(2), Linux 5.2.
func probeOverlay(root string, form unpack.MarkForm) (Driver, error) {
	if form == unpack.MarksNone {
		return nil, fmt.Errorf("whiteouts can't be made in %s", root)
	}
	dir, err := os.MkdirTemp(root, "probe-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	d := overlay{marks: form}
	if form == unpack.MarksUser {
		d.options = []string{"userxattr"}
	}
	lower := filepath.Join(dir, "lower")
	for _, sub := range []string{lower, filepath.Join(dir, "fs"), filepath.Join(dir, "work")} {
		if err := os.Mkdir(sub, 0o755); err != nil {
			return nil, err
		}
	}
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("fsopen: %w", err)
	}
	defer unix.Close(fs)
	set := func(k, v string) {
		if err == nil {
			if err = unix.FsconfigSetString(fs, k, v); err != nil {
				err = fmt.Errorf("option %s: %w", k, err)
			}
		}
	}
	set("lowerdir", lower)
	set("upperdir", filepath.Join(dir, "fs"))
	set("workdir", filepath.Join(dir, "work"))
	if err == nil && form == unpack.MarksUser {
		err = unix.FsconfigSetFlag(fs, "userxattr")
	}
	if err != nil {
		return nil, err
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, fmt.Errorf("mount: %w", err)
	}
	mnt, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("fsmount: %w", err)
	}
	_ = unix.Close(mnt)
	return d, nil
}
