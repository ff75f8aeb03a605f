package unpack

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Names of the OCI image-spec, layer.md "Whiteouts"; the others with two prefixes are AUFS's own files.
const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh."
	whiteoutOpaque = ".wh..wh..opq"
)

func (a *applier) whiteoutEntry(dir, base string) error {
	if strings.HasPrefix(base, whiteoutMeta) && base != whiteoutOpaque {
		return nil
	}
	in, err := a.enter(dir)
	if err != nil {
		return err
	}
	if base == whiteoutOpaque {
		return a.setOpaque(in.path, in.fd)
	}
	name := strings.TrimPrefix(base, whiteoutPrefix)
	if name == "" || name == "." || name == ".." {
		return fmt.Errorf("whiteout of %q: %w", name, errdefs.ErrInvalidArgument)
	}
	return a.white(place{dir: in.path, fd: in.fd, base: name})
}

// white notes that a name of the layers below is gone. A name that this layer holds too stays: a whiteout is about
// lower layers only, so a directory of that name becomes opaque and a file hides what is below anyway.
func (a *applier) white(at place) error {
	path := at.path()
	if a.whited(path) {
		return nil
	}
	var st unix.Stat_t
	err := unix.Fstatat(at.fd, at.base, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR:
		fd, err := a.root.dir(path)
		if err != nil {
			return err
		}
		return a.setOpaque(path, fd)
	case err == nil:
		return nil
	case !errors.Is(err, unix.ENOENT):
		return err
	}
	if slices.ContainsFunc(a.links, func(l Link) bool { return string(l.Path) == path }) {
		return nil
	}
	a.whiteouts[path] = struct{}{}
	if a.opt.Marks == MarksNone {
		return nil
	}
	if err := MakeWhiteout(at.fd, at.base, a.opt.Marks); err != nil {
		return err
	}
	a.inodes++
	return nil
}

// unwhite takes back a whiteout of a name that an entry of this layer now takes.
func (a *applier) unwhite(at place) (was bool, err error) {
	if len(a.whiteouts) == 0 {
		return false, nil
	}
	path := at.path()
	if !a.whited(path) {
		return false, nil
	}
	delete(a.whiteouts, path)
	if a.opt.Marks == MarksNone {
		return true, nil
	}
	a.inodes--
	return true, unix.Unlinkat(at.fd, whiteoutName(at.base, a.opt.Marks), 0)
}

func (a *applier) setOpaque(path string, fd int) error {
	_, again := a.opaques[path]
	a.opaques[path] = struct{}{}
	if a.opt.Marks == MarksNone || again {
		return nil
	}
	if a.opt.Marks == MarksFiles {
		a.inodes++
	}
	return MakeOpaque(fd, a.opt.Marks)
}

// LayDown makes the whiteouts and opaque marks of m, in m.Form, in a layer unpacked at dir with the form before. What was
// made in that form goes.
func LayDown(dir string, m Marks, before MarkForm) error {
	root, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(root)
	t := tree{fd: root}
	defer t.forget()
	for _, w := range m.Whiteouts {
		parent, base := split(string(w))
		fd, err := t.dir(parent)
		if err != nil {
			return fmt.Errorf("%q: %w", w, err)
		}
		if err := removeMark(fd, whiteoutName(base, before), before); err != nil {
			return fmt.Errorf("%q: %w", w, err)
		}
		if err := MakeWhiteout(fd, base, m.Form); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("%q: %w", w, err)
		}
	}
	for _, o := range m.Opaques {
		fd, err := t.dir(string(o))
		if err != nil {
			return fmt.Errorf("%q: %w", o, err)
		}
		if before == MarksFiles { // an attribute of another form is not in the way
			if err := removeMark(fd, whiteoutOpaque, before); err != nil {
				return fmt.Errorf("%q: %w", o, err)
			}
		}
		if err := MakeOpaque(fd, m.Form); err != nil {
			return fmt.Errorf("%q: %w", o, err)
		}
	}
	return nil
}

// whiteoutName is what stands for a whiteout of base.
func whiteoutName(base string, form MarkForm) string {
	if form == MarksFiles {
		return whiteoutPrefix + base
	}
	return base
}

// removeMark removes what has the name of a mark in the form before, if it is one.
func removeMark(dir int, name string, before MarkForm) error {
	if before == MarksNone {
		return nil
	}
	if err := unix.Unlinkat(dir, name, 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

// MakeWhiteout makes a whiteout in the directory dir.
func MakeWhiteout(dir int, base string, form MarkForm) error {
	kind := uint32(unix.S_IFCHR)
	if form == MarksFiles {
		kind = unix.S_IFREG
	}
	if err := unix.Mknodat(dir, whiteoutName(base, form), kind, 0); err != nil {
		return fmt.Errorf("make whiteout: %w", err)
	}
	return nil
}

// IsMark reports that a name in an unpacked layer is a mark in the form of files.
func IsMark(name string) bool { return strings.HasPrefix(name, whiteoutPrefix) }

// MakeOpaque marks the open directory as hiding the lower layers' content.
func MakeOpaque(fd int, form MarkForm) error {
	if form == MarksFiles {
		if err := unix.Mknodat(fd, whiteoutOpaque, unix.S_IFREG, 0); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("mark opaque: %w", err)
		}
		return nil
	}
	if err := unix.Fsetxattr(fd, string(form)+".overlay.opaque", []byte("y"), 0); err != nil {
		return fmt.Errorf("mark opaque: %w", err)
	}
	return nil
}

// remove takes away what has the name, with all below it and all that was noted about it.
func (a *applier) remove(at place) error {
	err := unix.Unlinkat(at.fd, at.base, 0)
	if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EPERM) {
		a.root.forgetBelow(at.path())
		if err = RemoveAllAt(at.fd, at.base); err != nil {
			return err
		}
		a.drop(at.path())
	}
	if err != nil {
		return err
	}
	a.manifest.add('x', at.path(), 0, 0, 0, 0, 0)
	a.recount = true
	return nil
}

// drop forgets all that was noted at and below path.
func (a *applier) drop(path string) {
	below := func(p string) bool { return p == path || strings.HasPrefix(p, path+"/") }
	gone := func(p string, _ struct{}) bool { return below(p) }
	maps.DeleteFunc(a.whiteouts, gone)
	maps.DeleteFunc(a.opaques, gone)
	maps.DeleteFunc(a.implied, gone)
	maps.DeleteFunc(a.dirs, func(p string, _ dirTimes) bool { return below(p) })
	a.links = slices.DeleteFunc(a.links, func(l Link) bool { return below(string(l.Path)) })
}

func (t *tree) forgetBelow(path string) {
	for p, fd := range t.open {
		if p == path || strings.HasPrefix(p, path+"/") {
			_ = unix.Close(fd)
			delete(t.open, p)
		}
	}
}

func paths(m map[string]struct{}) []Path {
	out := make([]Path, 0, len(m))
	for p := range m {
		out = append(out, Path(p))
	}
	slices.Sort(out)
	return out
}
