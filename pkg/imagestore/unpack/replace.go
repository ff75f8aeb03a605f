package unpack

import (
	"errors"

	"golang.org/x/sys/unix"
)

// Replace moves path, relative to both, from the open directory src to dst, where it takes the place of what was there;
// what src doesn't have is removed in dst. No symbolic link is followed. Both are on one file system.
func Replace(src, dst int, path string) error {
	parent, base := split(path)
	from, to := tree{fd: src}, tree{fd: dst}
	defer from.forget()
	defer to.forget()
	in, err := to.dir(parent)
	if err != nil {
		return err
	}
	if err := RemoveAllAt(in, base); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	out, err := from.dir(parent)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(in, &st); err != nil {
		return err
	}
	err = unix.Renameat(out, base, in, base)
	if errors.Is(err, unix.ENOENT) {
		err = nil
	}
	// The directory's times are part of the layer.
	return errors.Join(err, futimens(in, [2]unix.Timespec{st.Atim, st.Mtim}))
}
