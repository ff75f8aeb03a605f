package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/imagestore/unpack"
)

// btrfs keeps each root file system in a subvolume.
type btrfs struct{ copyDriver }

func (btrfs) Name() string { return "btrfs" }

// Prepare implements Driver. It copies the layers, whose extents the copies share; Clone is the fast way.
func (b btrfs) Prepare(ctx context.Context, dir string, layers []Layer) error {
	root := b.root(dir)
	if err := makeSubvolume(root); err != nil {
		return err
	}
	if err := os.Chmod(root, 0o755); err != nil {
		return err
	}
	return b.merge(ctx, root, layers)
}

// Clone implements Cloner.
func (b btrfs) Clone(dir, base string) error {
	from, err := os.Open(b.root(base))
	if err != nil {
		return err
	}
	defer from.Close()
	args := volArgsV2{fd: int64(from.Fd())}
	if err := volumeIoctl(b.root(dir), iocSnapCreateV2, &args, args.name[:]); err != nil {
		return fmt.Errorf("snapshot of %s: %w", b.root(base), err)
	}
	return nil
}

// Discard implements Discarder. A subvolume in which the container made others is removed file by file.
func (b btrfs) Discard(dir string) {
	var args volArgs
	_ = volumeIoctl(b.root(dir), iocSnapDestroy, &args, args.name[:])
}

// Usage implements Driver: what was written since the snapshot was made, by the file system's own count of generations. Data that
// is not allocated yet, up to half a minute old, is not in it. Where the snapshot was made by Prepare, that is all of it.
func (b btrfs) Usage(dir string) (bytes, inodes int64, err error) {
	root, err := os.Open(b.root(dir))
	if err != nil {
		return 0, 0, err
	}
	defer root.Close()
	var info subvolInfo
	if err := ioctl(root, iocGetSubvolInfo, unsafe.Pointer(&info)); err != nil {
		return 0, 0, fmt.Errorf("subvolume of %s: %w", dir, err)
	}
	u := writtenSince{after: info.otransid}
	if err := u.search(root); err != nil {
		return 0, 0, fmt.Errorf("what was written to %s: %w", dir, err)
	}
	return u.bytes, u.inodes + 1, nil // the root directory is always new
}

// makeSubvolume makes an empty subvolume.
func makeSubvolume(name string) error {
	var args volArgs
	if err := volumeIoctl(name, iocSubvolCreate, &args, args.name[:]); err != nil {
		return fmt.Errorf("make subvolume %s: %w", name, err)
	}
	return nil
}

// probeBtrfs makes a subvolume, a snapshot of it, and removes both as snapshots are removed.
func probeBtrfs(root string, form unpack.MarkForm) (Driver, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(root, &st); err != nil {
		return nil, err
	}
	if st.Type != unix.BTRFS_SUPER_MAGIC {
		return nil, errors.New(root + " is not on btrfs")
	}
	dir, err := os.MkdirTemp(root, "probe-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir) // an empty subvolume is removed as a directory is, since Linux 4.18
	b := btrfs{copyDriver{marks: form}}
	base, clone := filepath.Join(dir, "base"), filepath.Join(dir, "clone")
	if err := errors.Join(os.Mkdir(base, 0o700), os.Mkdir(clone, 0o700)); err != nil {
		return nil, err
	}
	if err := b.Prepare(context.Background(), base, nil); err != nil {
		return nil, err
	}
	if err := b.Clone(clone, base); err != nil {
		return nil, err
	}
	if _, _, err := b.Usage(clone); err != nil {
		return nil, err
	}
	return b, nil
}
