package imagestore

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/imagestore/snapshot"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore/unpack"
)

// layer is an unpacked layer; layers/A/H/layer.json.
type layer struct {
	Version int           `json:"version"`
	DiffID  digest.Digest `json:"diffID"`
	// Bytes and Inodes are those of the files.
	Bytes  int64 `json:"bytes"`
	Inodes int64 `json:"inodes"`
	// Plain layers say nothing about the layers below them but that their root is a directory like any other: there is no
	// marks.json, and RootImplied is all that marks would say.
	Plain       bool            `json:"plain,omitempty"`
	RootImplied bool            `json:"rootImplied,omitempty"`
	Form        unpack.MarkForm `json:"form"`
	// Files is the digest of the manifest beside the files, which Verify compares them with.
	Files digest.Digest `json:"files,omitempty"`

	// frameBytes and frameInodes are those of the directory and records around the files.
	frameBytes, frameInodes int64
	// small keeps what marks read, where that is little: each container's start asks for it.
	small *atomic.Pointer[unpack.Marks]
}

// maxSmall is the size in bytes of a marks.json that stays in memory.
const maxSmall = 16 << 10

const layerVersion = 1

// blobFile is a blob on disk.
type blobFile struct{ allocated int64 }

// maxMarks bounds marks.json: a layer may have millions of whiteouts.
const maxMarks = 1 << 30

// writeLayer writes the records of a layer unpacked in dir/fs.
func writeLayer(dir string, id, files digest.Digest, r unpack.Result) (*layer, error) {
	l := &layer{small: &atomic.Pointer[unpack.Marks]{}, Version: layerVersion, DiffID: id, Bytes: r.Bytes, Inodes: r.Inodes, Form: r.Marks.Form, Files: files}
	m := r.Marks
	l.RootImplied = len(m.Implied) > 0 && m.Implied[0] == "."
	rest := len(m.Implied)
	if l.RootImplied {
		rest--
	}
	l.Plain = rest == 0 && len(m.Whiteouts) == 0 && len(m.Opaques) == 0 && len(m.Links) == 0
	if !l.Plain {
		if err := writeJSON(filepath.Join(dir, "marks.json"), m); err != nil {
			return nil, err
		}
	}
	return l, writeJSON(filepath.Join(dir, "layer.json"), l)
}

// writeJSON writes a new file; the caller syncs.
func writeJSON(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(name, append(b, '\n'), 0o600)
}

func (l *layer) marks(dir string) (unpack.Marks, error) {
	if l.Plain {
		m := unpack.Marks{Form: l.Form}
		if l.RootImplied {
			m.Implied = []unpack.Path{"."}
		}
		return m, nil
	}
	if m := l.small.Load(); m != nil {
		return *m, nil
	}
	b, err := readCapped(filepath.Join(dir, "marks.json"), maxMarks)
	if err != nil {
		return unpack.Marks{}, err
	}
	var m unpack.Marks
	if err := json.Unmarshal(b, &m); err != nil {
		return unpack.Marks{}, fmt.Errorf("%s: %w: %w", filepath.Join(dir, "marks.json"), err, errdefs.ErrDataLoss)
	}
	if len(b) <= maxSmall {
		l.small.Store(&m)
	}
	return m, nil
}

// readLayer reads the record of an unpacked layer and recounts what it doesn't say.
func (s *Disk) readLayer(id digest.Digest) (*layer, error) {
	dir := s.layerPath(id)
	b, err := readCapped(filepath.Join(dir, "layer.json"), 1<<20)
	if err != nil {
		return nil, err
	}
	l := &layer{small: &atomic.Pointer[unpack.Marks]{}}
	if err := json.Unmarshal(b, l); err != nil {
		return nil, fmt.Errorf("layer.json: %w: %w", err, errdefs.ErrDataLoss)
	}
	if l.Version != layerVersion || l.DiffID != id {
		return nil, fmt.Errorf("layer.json: version %d of %q: %w", l.Version, l.DiffID, errdefs.ErrDataLoss)
	}
	st, err := os.Lstat(filepath.Join(dir, "fs"))
	if err != nil {
		return nil, err
	}
	if !st.IsDir() {
		return nil, fmt.Errorf("fs is no directory: %w", errdefs.ErrDataLoss)
	}
	if l.frameBytes, l.frameInodes, err = frame(dir); err != nil {
		return nil, err
	}
	if !l.Plain && l.Form != s.driver.Marks() && s.driver.Stacks() {
		if err := s.remark(dir, l); err != nil {
			return nil, fmt.Errorf("whiteouts: %w", err)
		}
	}
	if l.Inodes == 0 {
		if l.Bytes, l.Inodes, err = usageOf(filepath.Join(dir, "fs")); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// remark lays down the whiteouts of a layer that was unpacked when overlayfs's form was not to be had, or another was.
func (s *Disk) remark(dir string, l *layer) error {
	m, err := l.marks(dir)
	if err != nil {
		return err
	}
	before := m.Form
	m.Form = s.driver.Marks()
	if err := unpack.LayDown(filepath.Join(dir, "fs"), m, before); err != nil {
		return err
	}
	c := *l
	c.Form, c.small = m.Form, &atomic.Pointer[unpack.Marks]{}
	if c.Bytes, c.Inodes, err = usageOf(filepath.Join(dir, "fs")); err != nil {
		return err
	}
	if err := writeFileJSON(filepath.Join(dir, "marks.json"), m); err != nil {
		return err
	}
	if err := writeFileJSON(filepath.Join(dir, "layer.json"), c); err != nil {
		return err
	}
	c.frameBytes, c.frameInodes, err = frame(dir)
	*l = c
	return err
}

// writeFileJSON replaces a record durably.
func writeFileJSON(name string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return writeFile(name, append(b, '\n'))
}

func usageOf(dir string) (bytes, inodes int64, err error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, 0, err
	}
	defer unix.Close(fd)
	return unpack.UsageAt(fd)
}

// chain describes layers to a snapshot driver. ErrNotFound-free: the layers are of an image or snapshot that holds them.
func (s *Disk) chain(ids []digest.Digest) ([]snapshot.Layer, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make([]snapshot.Layer, 0, len(ids))
	for _, id := range ids {
		l, ok := s.layers[id]
		if !ok {
			return nil, fmt.Errorf("layer %s is missing: pull the image again: %w", id, errdefs.ErrDataLoss)
		}
		dir := s.layerPath(id)
		out = append(out, snapshot.Layer{FS: filepath.Join(dir, "fs"), Marks: func() (unpack.Marks, error) { return l.marks(dir) }})
	}
	return out, nil
}

// hold keeps content from being swept while a pull or an import needs it. The result lets it go.
func (s *Disk) hold(ids ...digest.Digest) (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.holdLocked(ids)
}

// holdLocked is hold for callers that have mu.
func (s *Disk) holdLocked(ids []digest.Digest) (release func()) {
	for _, id := range ids {
		s.held[id]++
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, id := range ids {
			if s.held[id]--; s.held[id] <= 0 {
				delete(s.held, id)
			}
		}
	}
}

// allocated is a file's disk usage in bytes.
func allocated(name string) (int64, error) {
	var st unix.Stat_t
	if err := unix.Lstat(name, &st); err != nil {
		return 0, err
	}
	return st.Blocks * 512, nil
}

// moveIn renames what is finished and synced into its place. What has the place already is as good: it is named by its
// digest.
func (s *Disk) moveIn(from, to string) error {
	err := os.Rename(from, to)
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) {
		return s.trash(to, func() error { return os.Rename(from, to) })
	}
	return err
}

// trash moves name away, runs then, and removes it.
func (s *Disk) trash(name string, then func() error) error {
	t := s.path("trash", randomName())
	if err := os.Rename(name, t); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := then(); err != nil {
		return err
	}
	_ = s.remove(t)
	return nil
}
