package snapshot

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/seed-9a14075a/cri-server/pkg/imagestore/unpack"
	"github.com/seed-9a14075a/cri-server/pkg/rootfs"
)

// fuseOverlay is overlay with fuse-overlayfs in the kernel's place.
type fuseOverlay struct {
	overlay
	program string
}

func (fuseOverlay) Name() string { return "fuse-overlayfs" }

func (f fuseOverlay) Rootfs(dir string, layers []Layer) rootfs.Rootfs {
	r := f.overlay.Rootfs(dir, layers)
	r.Fuse = f.program
	return r
}

func (f fuseOverlay) View(layers []Layer) (rootfs.Rootfs, bool) {
	r, ok := f.overlay.View(layers)
	if ok && r.Path == "" {
		r.Fuse = f.program
	}
	// The marks of a bottom layer are files that nothing hides, where they are made as files.
	if m := f.marks; ok && r.Path != "" && m == unpack.MarksFiles {
		return rootfs.Rootfs{}, false
	}
	return r, ok
}

// probeFuse serves a small tree once.
func probeFuse(root string, form unpack.MarkForm) (Driver, error) {
	program, err := exec.LookPath("fuse-overlayfs")
	if err != nil {
		return nil, err
	}
	if program, err = filepath.EvalSymlinks(program); err != nil {
		return nil, err
	}
	if form == unpack.MarksNone {
		form = unpack.MarksFiles
	}
	d := fuseOverlay{overlay: overlay{marks: form}, program: program}
	dir, err := os.MkdirTemp(root, "probe-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	for _, sub := range []string{"empty", "fs", "work"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			return nil, err
		}
	}
	f, err := d.Rootfs(dir, nil).Open(rootfs.Options{})
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if _, err := os.Stat(fmt.Sprintf("/proc/self/fd/%d/.", f.Fd())); err != nil {
		return nil, fmt.Errorf("fuse-overlayfs on %s: %w", root, err)
	}
	return d, nil
}
