package unpack

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// rootEntry is the layer's own root directory ("./").
func (a *applier) rootEntry(hdr *tar.Header) error {
	if hdr.Typeflag != tar.TypeDir {
		return fmt.Errorf("the root is not a directory: %w", errdefs.ErrInvalidArgument)
	}
	delete(a.implied, ".")
	a.dirs["."] = dirTimes{explicit: true, times: times(hdr)}
	a.note('d', ".", hdr, 0, 0)
	return a.attributes(a.root.fd, hdr)
}

func (a *applier) directory(at place, hdr *tar.Header, wasWhiteout bool) error {
	path := at.path()
	defer a.note('d', path, hdr, 0, 0) // behind what remove says of the path
	err := unix.Mkdirat(at.fd, at.base, 0o700)
	if errors.Is(err, unix.EEXIST) {
		fd, operr := a.root.dir(path)
		if operr == nil { // described again, or made for an earlier entry: the last description counts
			delete(a.implied, path)
			a.dirs[path] = dirTimes{explicit: true, times: times(hdr)}
			return a.attributes(fd, hdr)
		}
		if err = a.remove(at); err == nil {
			err = unix.Mkdirat(at.fd, at.base, 0o700)
		}
	}
	if err != nil {
		return err
	}
	fd, err := a.root.dir(path)
	if err != nil {
		return err
	}
	a.dirs[path] = dirTimes{explicit: true, times: times(hdr)}
	if err := a.attributes(fd, hdr); err != nil {
		return err
	}
	if wasWhiteout {
		return a.setOpaque(path, fd)
	}
	return nil
}

func (a *applier) regular(at place, hdr *tar.Header, r io.Reader) error {
	if l := a.opt.Limits.Bytes; l > 0 && (hdr.Size > l || a.written+hdr.Size > l) {
		return fmt.Errorf("layer unpacks to more than %d bytes: %w", l, errdefs.ErrResourceExhausted)
	}
	a.written += hdr.Size
	var fd int
	err := a.create(at, func() (err error) {
		fd, err = unix.Openat(at.fd, at.base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, uint32(hdr.Mode&0o777))
		return err
	})
	if err != nil {
		return err
	}
	a.inodes++
	if hdr.Size > maxAside || sparse(hdr) {
		err = a.content(at, fd, hdr, r)
		if cerr := unix.Close(fd); err == nil {
			err = cerr
		}
		return err
	}
	return a.aside(at, fd, hdr)
}

// content writes what a file holds and describes it.
func (a *applier) content(at place, fd int, hdr *tar.Header, r io.Reader) error {
	var sum uint32
	add := func(b []byte) { sum = crc32.Update(sum, castagnoli, b) }
	var err error
	if sparse(hdr) {
		err = a.copy(fd, hdr.Size, r, add)
	} else {
		err = a.in.content(hdr.Size, func(b []byte) error {
			add(b)
			return writeAll(fd, b)
		})
	}
	if err != nil {
		return err
	}
	a.note('f', at.path(), hdr, hdr.Size, sum)
	n, err := a.describe(fd, hdr)
	a.bytes += n
	return err
}

// describe gives a written file its attributes and times; it returns the bytes allocated.
func (a *applier) describe(fd int, hdr *tar.Header) (int64, error) {
	if err := a.attributes(fd, hdr); err != nil {
		return 0, err
	}
	if err := futimens(fd, times(hdr)); err != nil {
		return 0, fmt.Errorf("set times: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, err
	}
	return st.Blocks * 512, nil
}

// sparse reports GNU's sparse formats, whose holes package tar reads as zeros.
func sparse(hdr *tar.Header) bool {
	if hdr.Typeflag == tar.TypeGNUSparse {
		return true
	}
	for _, k := range []string{"GNU.sparse.major", "GNU.sparse.map", "GNU.sparse.size", "GNU.sparse.realsize"} {
		if _, ok := hdr.PAXRecords[k]; ok {
			return true
		}
	}
	return false
}

var zeros [64 << 10]byte

// copy writes the size bytes of r to fd, leaving out blocks of zeros.
func (a *applier) copy(fd int, size int64, r io.Reader, add func([]byte)) error {
	var total int64
	buf := a.buf[:len(zeros)]
	for {
		n, err := r.Read(buf)
		add(buf[:n])
		if n > 0 && bytes.Equal(buf[:n], zeros[:n]) {
			if _, err := unix.Seek(fd, int64(n), io.SeekCurrent); err != nil {
				return err
			}
		} else if err := writeAll(fd, buf[:n]); err != nil {
			return err
		}
		total += int64(n)
		switch {
		case err == io.EOF && total != size:
			return fmt.Errorf("%d bytes instead of %d: %w", total, size, errdefs.ErrInvalidArgument)
		case err == io.EOF:
			return unix.Ftruncate(fd, total)
		case err != nil:
			return fmt.Errorf("read content: %w", err)
		}
	}
}

func writeAll(fd int, p []byte) error {
	for len(p) > 0 {
		n, err := unix.Write(fd, p)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("write: %w", err)
		}
		p = p[n:]
	}
	return nil
}

func (a *applier) symlink(at place, hdr *tar.Header) error {
	if hdr.Linkname == "" || len(hdr.Linkname) >= unix.PathMax {
		return fmt.Errorf("symbolic link to %d bytes: %w", len(hdr.Linkname), errdefs.ErrInvalidArgument)
	}
	if err := a.create(at, func() error { return unix.Symlinkat(hdr.Linkname, at.fd, at.base) }); err != nil {
		return err
	}
	a.note('s', at.path(), hdr, 0, sumOf(hdr.Linkname))
	return a.finishNode(at, hdr)
}

func (a *applier) hardlink(at place, hdr *tar.Header) error {
	target, err := a.clean(hdr.Linkname)
	if err != nil {
		return fmt.Errorf("hard link: %w", err)
	}
	if target == "." {
		return fmt.Errorf("hard link to the root: %w", errdefs.ErrInvalidArgument)
	}
	dir, base := split(target)
	from, err := a.walk(dir, false)
	if errors.Is(err, unix.ENOENT) {
		return a.linkBelow(at, target)
	}
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", short(target), err)
	}
	full := join(from.path, base)
	if full == at.path() {
		return nil
	}
	if a.whited(full) {
		return fmt.Errorf("hard link to a removed file %q: %w", short(target), errdefs.ErrInvalidArgument)
	}
	var st unix.Stat_t
	switch err := unix.Fstatat(from.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW); {
	case errors.Is(err, unix.ENOENT):
		return a.linkBelow(at, full)
	case err != nil:
		return fmt.Errorf("hard link to %q: %w", short(target), err)
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return fmt.Errorf("hard link to a directory %q: %w", short(target), errdefs.ErrInvalidArgument)
	}
	if err := a.create(at, func() error { return unix.Linkat(from.fd, base, at.fd, at.base, 0) }); err != nil {
		return err
	}
	a.note('h', at.path(), hdr, 0, sumOf(full))
	return nil
}

// linkBelow notes a hard link to a file of a lower layer; the name is free until the image is put together.
func (a *applier) linkBelow(at place, target string) error {
	if err := a.remove(at); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	a.links = append(a.links, Link{Path: Path(at.path()), Target: Path(target)})
	return nil
}

func (a *applier) node(at place, hdr *tar.Header) error {
	mode := uint32(hdr.Mode & 0o7777)
	dev := 0
	switch hdr.Typeflag {
	case tar.TypeFifo:
		mode |= unix.S_IFIFO
	case tar.TypeChar:
		if hdr.Devmajor == 0 && hdr.Devminor == 0 { // the tar of an overlayfs upper directory: that is a whiteout
			return a.white(at)
		}
		mode |= unix.S_IFCHR
	default:
		mode |= unix.S_IFBLK
	}
	if hdr.Typeflag != tar.TypeFifo {
		if hdr.Devmajor < 0 || hdr.Devmajor >= 1<<12 || hdr.Devminor < 0 || hdr.Devminor >= 1<<20 {
			return fmt.Errorf("device %d:%d: %w", hdr.Devmajor, hdr.Devminor, errdefs.ErrInvalidArgument)
		}
		if a.opt.SkipDevices {
			a.skipped++
			return nil
		}
		dev = int(unix.Mkdev(uint32(hdr.Devmajor), uint32(hdr.Devminor)))
	}
	if err := a.create(at, func() error { return unix.Mknodat(at.fd, at.base, mode, dev) }); err != nil {
		return fmt.Errorf("make node: %w", err)
	}
	if err := unix.Fchmodat(at.fd, at.base, mode&0o7777, 0); err != nil { // no symbolic link: we just made it
		return fmt.Errorf("set mode: %w", err)
	}
	a.note('n', at.path(), hdr, 0, 0)
	return a.finishNode(at, hdr)
}

// create runs make, and once more after removing what already has the name (a duplicate entry: the last wins).
func (a *applier) create(at place, mk func() error) error {
	err := mk()
	if !errors.Is(err, unix.EEXIST) {
		return err
	}
	if err := a.remove(at); err != nil {
		return err
	}
	return mk()
}

func times(hdr *tar.Header) [2]unix.Timespec {
	t := hdr.ModTime
	// Beyond what file systems hold and what UnixNano can say, a time is a mistake or an attack; it is clamped.
	if t.Before(time.Unix(math.MinInt32, 0)) {
		t = time.Unix(0, 0)
	}
	if t.After(time.Unix(1<<34-1, 0)) { // ext4's last second
		t = time.Unix(1<<34-1, 0)
	}
	ts := unix.Timespec{Sec: t.Unix(), Nsec: int64(t.Nanosecond())}
	return [2]unix.Timespec{ts, ts}
}
