package runtime

import (
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/imagestore"
	"github.com/seed-9a14075a/cri-server/pkg/rootfs"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/spec"
)

const (
	// maxImages bounds the images whose files are kept; kubelet keeps some dozens.
	maxImages = 128
	// maxKept bounds what is kept of an image, in bytes. Real ones have some KB.
	maxKept = 64 << 10
)

// imageFiles keeps what a container's creation needs to know of the files in its image. They are the same for all containers of
// the image, and to read them its layers must be mounted, which is more than all the rest of the spec.
type imageFiles struct {
	mu sync.Mutex
	m  map[string]*imageFile // by image id
}

type imageFile struct {
	at     []place
	read   spec.Files
	varRun string
}

// place tells a layer's directory from the one that takes its place when it is repaired.
type place struct {
	dev, ino uint64
	changed  unix.Timespec
}

// places are nil where they can't be told.
func places(r rootfs.Rootfs) []place {
	paths := r.Lower
	if r.Path != "" {
		paths = []string{r.Path}
	}
	at := make([]place, len(paths))
	for i, p := range paths {
		var st unix.Stat_t
		if unix.Stat(p, &st) != nil {
			return nil
		}
		at[i] = place{st.Dev, st.Ino, st.Ctim}
	}
	return at
}

// of reads the files of an image, or has them.
func (f *imageFiles) of(images imagestore.Store, id string) (*imageFile, error) {
	view, err := images.View(id)
	if err != nil {
		return nil, err
	}
	at := places(view)
	f.mu.Lock()
	have := f.m[id]
	f.mu.Unlock()
	if have != nil && at != nil && slices.Equal(have.at, at) {
		return have, nil
	}
	got, keep, err := readImage(view)
	if err != nil || !keep || at == nil {
		return got, err
	}
	got.at = at
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.m == nil {
		f.m = map[string]*imageFile{}
	}
	for other := range f.m {
		if len(f.m) < maxImages {
			break
		}
		delete(f.m, other) // any: it costs a mount
	}
	f.m[id] = got
	return got, nil
}

// readImage tells, besides, whether that may be kept: files are not that can't be read, for somebody may mend that.
func readImage(view rootfs.Rootfs) (_ *imageFile, keep bool, _ error) {
	root, err := view.View()
	if err != nil {
		return nil, false, err
	}
	defer root.Close()
	type file struct {
		text []byte
		err  error
	}
	files, size, keep := map[string]file{}, 0, true
	for _, name := range []string{"etc/passwd", "etc/group"} {
		b, err := spec.FilesOf(root)(name)
		files[name] = file{b, err}
		size += len(b)
		keep = keep && err == nil
	}
	read := func(name string) ([]byte, error) { return files[name].text, files[name].err }
	return &imageFile{read: read, varRun: varRun(root)}, keep && size <= maxKept, nil
}
