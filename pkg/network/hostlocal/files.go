package hostlocal

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/smallfile"
	"github.com/seed-9a14075a/cri-server/pkg/faultpoint"
)

// sparePrefix is that of files whose lease was released, for the next leases: a rename is much less for a file system than a new
// inode. The reference plugin passes over names that are no addresses.
const sparePrefix = ".spare-"

// lease makes a lease with its content, or none: it has no name of a lease before it is written, so that a process that is killed
// leaves none without an owner. os.ErrExist: there is a file of that name.
func (s *store) lease(path, text string) error {
	for n := len(s.spares); n > 0; n = len(s.spares) {
		spare := filepath.Join(s.dir, s.spares[n-1])
		s.spares = s.spares[:n-1]
		if smallfile.Reuse(spare, []byte(text), 0o600) != nil { // another process may have used it
			_ = unix.Unlink(spare)
			continue
		}
		err := written()
		if err == nil {
			err = unix.Renameat2(unix.AT_FDCWD, spare, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE)
		}
		if err == nil {
			return nil
		}
		_ = unix.Unlink(spare)
		if err != unix.EINVAL { // renameat2(2): a file system without the flag
			return err
		}
	}
	return writeNew(path, text)
}

// mark is how a lease of an address ends: with that in spaces and tabs, which all who read a lease trim.
func mark(a netip.Addr) string {
	b := []byte{'\n'}
	for _, x := range a.AsSlice() {
		for bit := range 8 {
			b = append(b, " \t"[x>>bit&1])
		}
	}
	return string(b)
}

// stale tells of the text of an address's lease that it is another's. A lease takes its name with the file system's next commit,
// and what is written into a used file comes to disk up to half a minute later: if the machine loses power meanwhile, it has its
// file's former text, whose owner is gone, so that nobody would ever release it.
func stale(text string, a netip.Addr) bool {
	i := strings.LastIndexByte(text, '\n')
	marked := i >= 0 && len(text)-i > 32 && strings.Trim(text[i:], "\n \t") == ""
	return marked && text[i:] != mark(a) || strings.IndexByte(text, 0) >= 0 // written, and longer than what is on disk
}

// written is passed by a lease that has its content and not yet its name, be its file a spare or new.
func written() error { return faultpoint.Hit("hostlocal.lease.written") }

// writeNew is lease with a new file, which has no name at all while it is written (open(2), O_TMPFILE).
func writeNew(path, text string) error {
	fd, err := unix.Open(filepath.Dir(path), unix.O_WRONLY|unix.O_TMPFILE|unix.O_CLOEXEC, 0o600)
	named := errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EISDIR) // a file system without it
	if named {
		fd, err = unix.Open(path, unix.O_WRONLY|unix.O_EXCL|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	}
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), path)
	_, err = f.WriteString(text)
	if err == nil {
		err = written()
	}
	if err == nil && !named {
		err = unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW)
	}
	err = errors.Join(err, f.Close())
	if err != nil && named {
		err = errors.Join(err, os.Remove(path))
	}
	return err
}

// renameLease is rename(2), but in tests.
var renameLease = unix.Rename

// release takes a lease away. Its file is a spare then, or gone.
func (s *store) release(a netip.Addr) error {
	path := filepath.Join(s.dir, a.String())
	spare := sparePrefix + strconv.FormatUint(rand.Uint64(), 36)
	if len(s.spares) < smallfile.Enough && renameLease(path, filepath.Join(s.dir, spare)) == nil {
		s.spares = append(s.spares, spare)
	} else if err := unix.Unlink(path); err != nil && err != unix.ENOENT { // of the longer name a full disk may have no room
		return fmt.Errorf("host-local: release: %w", err)
	}
	delete(s.leases, a)
	return nil
}

// lastName is the file with the address that was given last from a range set.
func (s *store) lastName(set string) string { return filepath.Join(s.dir, "last_reserved_ip."+set) }

// lastOf is the address that was given last from a range set. Who gives one changes the directory, too, and we read it anew.
func (s *store) lastOf(set string) netip.Addr {
	if a, ok := s.last[set]; ok {
		return a
	}
	b, err := readLease(s.lastName(set))
	if err != nil {
		return netip.Addr{}
	}
	a, _ := netip.ParseAddr(strings.TrimSpace(b))
	return a.Unmap()
}

func (s *store) setLast(set string, a netip.Addr) error {
	delete(s.last, set)
	if err := smallfile.Overwrite(s.lastName(set), []byte(a.String()), 0o600); err != nil {
		return err
	}
	if s.last == nil {
		s.last = map[string]netip.Addr{}
	}
	s.last[set] = a
	return nil
}
