package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/imagestore/unpack"
	"github.com/seed-9a14075a/cri-server/pkg/rootfs"
)

// copyDriver copies the layers into one directory, sharing extents where the file system can (FICLONE).
type copyDriver struct{ marks unpack.MarkForm }

func (copyDriver) Name() string             { return "copy" }
func (c copyDriver) Marks() unpack.MarkForm { return c.marks }
func (copyDriver) Stacks() bool             { return false }
func (copyDriver) root(dir string) string   { return filepath.Join(dir, "rootfs") }

func (c copyDriver) Rootfs(dir string, _ []Layer) rootfs.Rootfs {
	return rootfs.Rootfs{Path: c.root(dir)}
}

// Usage implements Driver: all of the copy.
func (c copyDriver) Usage(dir string) (bytes, inodes int64, err error) { return treeUsage(c.root(dir)) }

func (copyDriver) View([]Layer) (rootfs.Rootfs, bool) { return rootfs.Rootfs{}, false }

func (c copyDriver) Prepare(ctx context.Context, dir string, layers []Layer) error {
	root := c.root(dir)
	if err := os.Mkdir(root, 0o755); err != nil {
		return err
	}
	return c.merge(ctx, root, layers)
}

// merge lays the layers over each other in the empty directory root.
func (c copyDriver) merge(ctx context.Context, root string, layers []Layer) error {
	dst, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dst)
	for i, l := range layers {
		if err := c.layer(ctx, dst, l); err != nil {
			return fmt.Errorf("copy layer %d: %w", i, err)
		}
	}
	// Directories kept their description as the layers were laid over each other; links are left.
	f, err := findFixes(layers)
	if err != nil {
		return err
	}
	f.dirs = nil
	if err := f.apply(root, layers); err != nil {
		return err
	}
	return rootAttributes(root, layers)
}

func (c copyDriver) layer(ctx context.Context, dst int, l Layer) error {
	m, err := l.Marks()
	if err != nil {
		return err
	}
	for _, w := range m.Whiteouts {
		if err := removeBelow(dst, string(w)); err != nil {
			return fmt.Errorf("whiteout %q: %w", w, err)
		}
	}
	for _, o := range m.Opaques {
		if err := emptyBelow(dst, string(o)); err != nil {
			return fmt.Errorf("opaque %q: %w", o, err)
		}
	}
	src, err := unix.Open(l.FS, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(src)
	cp := copier{ctx: ctx, implied: set(m.Implied), whiteouts: set(m.Whiteouts), links: map[inode]string{}, root: dst}
	return cp.dir(src, dst, ".")
}

func set(paths []unpack.Path) map[string]bool {
	m := make(map[string]bool, len(paths))
	for _, p := range paths {
		m[string(p)] = true
	}
	return m
}

// openBelow opens the directory that path lies in. Layers hold no path through a symbolic link, so none is followed.
func openBelow(root int, path string) (fd int, base string, err error) {
	dir := "."
	base = path
	if i := strings.LastIndexByte(path, '/'); i >= 0 {
		dir, base = path[:i], path[i+1:]
	}
	fd, err = unix.Openat2(root, dir, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
	return fd, base, err
}

func absent(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP)
}

func removeBelow(root int, path string) error {
	fd, base, err := openBelow(root, path)
	if absent(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unpack.RemoveAllAt(fd, base)
}

func emptyBelow(root int, path string) error {
	fd, _, err := openBelow(root, path+"/.")
	if absent(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	names, err := unpack.ReadNames(fd)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := unpack.RemoveAllAt(fd, n); err != nil {
			return err
		}
	}
	return nil
}
