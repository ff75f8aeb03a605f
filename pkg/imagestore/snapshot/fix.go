package snapshot

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/imagestore/unpack"
)

// stack is an image's layers with their marks, for questions that one layer can't answer: layers are unpacked without
// those below them.
type stack []stacked

type stacked struct {
	fs                          string
	whiteouts, opaques, implied map[string]bool
	links                       []unpack.Link
}

func newStack(layers []Layer) (stack, error) {
	var s stack
	for _, l := range layers {
		m, err := l.Marks()
		if err != nil {
			return nil, err
		}
		s = append(s, stacked{fs: l.FS, whiteouts: set(m.Whiteouts), opaques: set(m.Opaques), implied: set(m.Implied), links: m.Links})
	}
	return s, nil
}

// fixes is what merging the layers alone gets wrong.
type fixes struct {
	// dirs are directories that the topmost layer holding them doesn't describe, with the layer that does.
	dirs map[string]string
	// links are hard links to files of lower layers, with the layer's directory that holds the target.
	links []fixLink
}

type fixLink struct{ path, target, fs string }

func (f fixes) empty() bool { return len(f.dirs) == 0 && len(f.links) == 0 }

// findFixes looks for them. Images made by current tools have none.
func findFixes(layers []Layer) (fixes, error) {
	f := fixes{dirs: map[string]string{}}
	s, err := newStack(layers)
	if err != nil {
		return f, err
	}
	for i := range s {
		for p := range s[i].implied {
			if p == "." || i == 0 || !s.visible(p, i) {
				continue
			}
			from, ok := s.described(p, i-1)
			if ok && !sameAttributes(path.Join(s[i].fs, p), from) {
				f.dirs[p] = from
			}
		}
		for _, l := range s[i].links {
			if !s.visible(string(l.Path), i) {
				continue
			}
			fs, ok := s.file(string(l.Target), i-1)
			if !ok {
				return f, fmt.Errorf("layer %d: hard link %q to %q, which no layer holds: %w", i, l.Path, l.Target, errdefs.ErrInvalidArgument)
			}
			f.links = append(f.links, fixLink{string(l.Path), string(l.Target), fs})
		}
	}
	return f, nil
}

// visible reports whether what layer i holds at p is what the merged tree has: no higher layer says anything about p,
// or hides a directory above it.
func (s stack) visible(p string, i int) bool {
	for _, l := range s[i+1:] {
		if l.hides(p) {
			return false
		}
		if st, err := os.Lstat(path.Join(l.fs, p)); err == nil && !(st.IsDir() && l.implied[p]) {
			return false
		}
	}
	return true
}

// hides reports whether the layer takes p away from those below it: by a whiteout, or by making a directory above it
// opaque or something else.
func (l stacked) hides(p string) bool {
	if l.whiteouts[p] {
		return true
	}
	for dir := path.Dir(p); ; dir = path.Dir(dir) {
		if l.opaques[dir] || l.whiteouts[dir] {
			return true
		}
		if dir == "." {
			return l.opaques["."]
		}
		if st, err := os.Lstat(path.Join(l.fs, dir)); err == nil && !st.IsDir() {
			return true
		}
	}
}

// described finds the directory at p that the highest layer up to i describes.
func (s stack) described(p string, i int) (string, bool) {
	if s[i+1].opaques[p] || s[i+1].hides(p) {
		return "", false
	}
	for ; i >= 0; i-- {
		full := path.Join(s[i].fs, p)
		st, err := os.Lstat(full)
		switch {
		case err == nil && !st.IsDir():
			return "", false
		case err == nil && !s[i].implied[p]:
			return full, true
		}
		if s[i].opaques[p] || s[i].hides(p) {
			return "", false
		}
	}
	return "", false
}

// file finds the layer up to i whose p the merged tree up to there shows.
func (s stack) file(p string, i int) (fs string, ok bool) {
	for ; i >= 0; i-- {
		if s[i].whiteouts[p] {
			return "", false
		}
		st, err := os.Lstat(path.Join(s[i].fs, p))
		if err == nil {
			return s[i].fs, !st.IsDir()
		}
		if s[i].hides(p) {
			return "", false
		}
	}
	return "", false
}

func sameAttributes(a, b string) bool {
	var x, y unix.Stat_t
	if unix.Lstat(a, &x) != nil || unix.Lstat(b, &y) != nil {
		return false
	}
	n, err := unix.Llistxattr(b, nil)
	return x.Mode == y.Mode && x.Uid == y.Uid && x.Gid == y.Gid && (n == 0 || err != nil)
}

// apply makes the fixes in upper, the topmost layer of the merged tree. layers are bottom first.
func (f fixes) apply(upper string, layers []Layer) error {
	if f.empty() {
		return nil
	}
	root, err := unix.Open(upper, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(root)
	for _, l := range f.links {
		if err := f.copyLink(root, l, layers); err != nil {
			return fmt.Errorf("hard link %q to a lower layer: %w", l.path, err)
		}
	}
	dirs := make([]string, 0, len(f.dirs))
	for p := range f.dirs {
		dirs = append(dirs, p)
	}
	slices.Sort(dirs)
	for _, p := range dirs {
		if err := f.mkdirs(root, p, layers); err != nil {
			return fmt.Errorf("directory %q: %w", p, err)
		}
	}
	return nil
}

// mkdirs makes the directory p and those above it with the attributes that the merged tree shows.
func (f fixes) mkdirs(root int, p string, layers []Layer) error {
	if p == "." {
		return nil
	}
	if err := f.mkdirs(root, path.Dir(p), layers); err != nil {
		return err
	}
	from, ok := f.dirs[p]
	for i := len(layers) - 1; i >= 0 && !ok; i-- {
		from = path.Join(layers[i].FS, p)
		st, err := os.Lstat(from)
		ok = err == nil && st.IsDir()
	}
	if !ok {
		return unix.ENOENT
	}
	parent, base, err := openBelow(root, p)
	if err != nil {
		return err
	}
	defer unix.Close(parent)
	if err := unix.Mkdirat(parent, base, 0o700); err != nil {
		if errors.Is(err, unix.EEXIST) {
			return nil
		}
		return err
	}
	src, err := unix.Open(from, openFlags|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(src)
	dst, err := unix.Openat(parent, base, openFlags|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dst)
	var st unix.Stat_t
	if err := unix.Fstat(src, &st); err != nil {
		return err
	}
	return (&copier{}).attributes(src, dst, &st)
}

// copyLink copies the target's content: the other name stays in its layer.
func (f fixes) copyLink(root int, l fixLink, layers []Layer) error {
	if err := f.mkdirs(root, path.Dir(l.path), layers); err != nil {
		return err
	}
	src, base, err := openBelowDir(l.fs, l.target)
	if err != nil {
		return err
	}
	defer unix.Close(src)
	dst, name, err := openBelow(root, l.path)
	if err != nil {
		return err
	}
	defer unix.Close(dst)
	var st unix.Stat_t
	if err := unix.Fstatat(src, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return fmt.Errorf("the target is no regular file: %w", errdefs.ErrNotImplemented)
	}
	return (&copier{}).fileAs(src, dst, base, name, &st)
}

func openBelowDir(dir, p string) (int, string, error) {
	root, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, "", err
	}
	defer unix.Close(root)
	return openBelow(root, strings.TrimSuffix(p, "/"))
}
