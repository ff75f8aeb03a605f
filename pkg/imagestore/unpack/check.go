package unpack

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Check compares the unpacked layer in the open directory dir with its manifest and marks, and calls report for each
// path that differs. Deep reads the files' content too. The error is that of reading the manifest, or of ctx.
func Check(ctx context.Context, dir int, manifest io.Reader, marks Marks, deep bool, report func(path Path, what string)) error {
	want, err := readManifest(manifest)
	if err != nil {
		return err
	}
	c := &checker{ctx: ctx, want: want, deep: deep, report: report, inodes: map[string]uint64{}, whiteouts: map[string]bool{}}
	if deep {
		c.buf = make([]byte, 256<<10)
	}
	if marks.Form != MarksNone {
		for _, w := range marks.Whiteouts {
			dir, base := split(string(w))
			c.whiteouts[join(dir, whiteoutName(base, marks.Form))] = true
		}
	}
	if marks.Form == MarksFiles {
		for _, o := range marks.Opaques {
			c.whiteouts[join(string(o), whiteoutOpaque)] = true
		}
	}
	if err := c.dir(dir, ".", 0); err != nil {
		return err
	}
	for path, r := range want { // those that were met are out of the map
		if path != "." && r.kind != 0 {
			report(Path(path), "missing")
		}
	}
	for path, there := range c.whiteouts {
		if there {
			report(Path(path), "whiteout missing")
		}
	}
	return c.links()
}

type checker struct {
	ctx    context.Context
	want   map[string]record
	deep   bool
	buf    []byte
	report func(Path, string)
	// inodes are those of files that have more than one name, by path; hard are the hard links met.
	inodes    map[string]uint64
	hard      []string
	sums      map[string]uint32
	whiteouts map[string]bool
}

func (c *checker) dir(fd int, path string, depth int) error {
	names, err := ReadNames(fd)
	if err != nil {
		c.report(Path(path), err.Error())
		return nil
	}
	for _, name := range names {
		if err := c.ctx.Err(); err != nil {
			return context.Cause(c.ctx)
		}
		if err := c.entry(fd, name, join(path, name), depth); err != nil {
			return err
		}
	}
	return nil
}

func (c *checker) entry(fd int, name, path string, depth int) error {
	var st unix.Stat_t
	if err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		c.report(Path(path), err.Error())
		return nil
	}
	r, ok := c.want[path]
	delete(c.want, path)
	if !ok {
		if c.whiteouts[path] && st.Rdev == 0 && (st.Mode&unix.S_IFMT == unix.S_IFCHR || st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size == 0 && IsMark(name)) {
			c.whiteouts[path] = false
			return nil
		}
		c.report(Path(path), "unexpected")
		return nil
	}
	if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		c.inodes[path] = st.Ino
	}
	if what := c.compare(fd, name, path, r, &st); what != "" {
		c.report(Path(path), what)
		if r.kind != 'd' || st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return nil
		}
	}
	if r.kind != 'd' || depth > maxHeld {
		return nil
	}
	sub, err := unix.Openat(fd, name, openDir, 0)
	if err != nil {
		c.report(Path(path), err.Error())
		return nil
	}
	defer unix.Close(sub)
	return c.dir(sub, path, depth+1)
}

// kinds are the file types that a record may stand for.
var kinds = map[byte][]uint32{
	'f': {unix.S_IFREG}, 'd': {unix.S_IFDIR}, 's': {unix.S_IFLNK}, 'n': {unix.S_IFIFO, unix.S_IFCHR, unix.S_IFBLK},
}

// compare says what is wrong with an entry, "" for nothing.
func (c *checker) compare(fd int, name, path string, r record, st *unix.Stat_t) string {
	if r.kind == 'h' {
		c.hard = append(c.hard, path)
		if c.sums == nil {
			c.sums = map[string]uint32{}
		}
		c.sums[path] = r.sum
		return ""
	}
	switch {
	case !slices.Contains(kinds[r.kind], st.Mode&unix.S_IFMT):
		return "of another type"
	case r.kind == 'f' && st.Size != r.size:
		return fmt.Sprintf("%d bytes instead of %d", st.Size, r.size)
	case r.kind != 's' && st.Mode&0o7777 != r.mode:
		return fmt.Sprintf("mode %o instead of %o", st.Mode&0o7777, r.mode)
	case r.uid >= 0 && (int64(st.Uid) != int64(r.uid) || int64(st.Gid) != int64(r.gid)):
		return fmt.Sprintf("owner %d:%d instead of %d:%d", st.Uid, st.Gid, r.uid, r.gid)
	case r.kind == 's':
		target, err := readlinkat(fd, name)
		if err != nil {
			return err.Error()
		}
		if sumOf(target) != r.sum {
			return "links elsewhere"
		}
	case r.kind == 'f' && c.deep:
		sum, err := c.sum(fd, name)
		if err != nil {
			return err.Error()
		}
		if sum != r.sum {
			return "content differs"
		}
	}
	return ""
}

func (c *checker) sum(dir int, name string) (uint32, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	// What is in memory is not what is to be checked; what can't be dropped from it (dirty, mapped) stays. posix_fadvise(2).
	_ = unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED)
	var sum uint32
	for {
		n, err := unix.Read(fd, c.buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 0, err
		}
		if n == 0 {
			return sum, nil
		}
		sum = crc32.Update(sum, castagnoli, c.buf[:n])
	}
}

// links checks that hard links are what they were linked to: a file whose path has the recorded sum.
func (c *checker) links() error {
	byInode := map[uint64][]uint32{}
	for path, ino := range c.inodes {
		byInode[ino] = append(byInode[ino], sumOf(path))
	}
	slices.SortFunc(c.hard, strings.Compare)
	for _, path := range c.hard {
		if !slices.Contains(byInode[c.inodes[path]], c.sums[path]) {
			c.report(Path(path), "hard link differs")
		}
	}
	return nil
}
