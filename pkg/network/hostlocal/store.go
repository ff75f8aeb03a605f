package hostlocal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/faultpoint"
)

// maxLease bounds what is read of a lease file: a container id, a line break and an interface name.
const maxLease = 4096

// store is a network's directory. Its index spares reading every lease for each attachment: it holds while the
// directory's mtime is the one that we gave it after our own last change. The kernel's own would not do: before Linux 6.13
// it moves on by timer ticks only, and what somebody else changes within the same tick leaves it as it is.
type store struct {
	dir string
	mu  chan struct{} // a mutex that gives up with its context

	leases map[netip.Addr]string // address → content, trimmed
	last   map[string]netip.Addr // by range set, as far as it was read
	spares []string              // names of files of released leases
	mtime  unix.Timespec
}

var stores sync.Map // dir → *store

func open(dir string) *store {
	s, _ := stores.LoadOrStore(dir, &store{dir: dir, mu: make(chan struct{}, 1)})
	return s.(*store)
}

// locked runs f with the store to itself, among goroutines and processes.
func (s *store) locked(ctx context.Context, f func() error) error {
	select {
	case s.mu <- struct{}{}:
	case <-ctx.Done():
		return fmt.Errorf("host-local: wait for %s: %w", s.dir, ctx.Err())
	}
	defer func() { <-s.mu }()
	lock, err := s.openLock()
	if err != nil {
		return fmt.Errorf("host-local: %w", err)
	}
	defer unix.Close(lock) // and unlock
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		err := unix.Flock(lock, unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("host-local: lock %s: %w", s.lockName(), err)
		}
		select { // another process has it; flock(2) itself has no deadline
		case <-time.After(wait):
		case <-ctx.Done():
			return fmt.Errorf("host-local: %s is locked by another process: %w", s.lockName(), ctx.Err())
		}
	}
	if err := s.load(false); err != nil {
		return err
	}
	err = f()
	s.stamp()
	return err
}

func (s *store) lockName() string { return filepath.Join(s.dir, "lock") }

// openLock opens the file that is locked, which the reference plugin locks, too. It is opened each time: somebody may have removed
// the directory.
func (s *store) openLock() (int, error) {
	for made := false; ; {
		fd, err := unix.Open(s.lockName(), unix.O_CREAT|unix.O_RDONLY|unix.O_CLOEXEC, 0o600)
		switch {
		case err == nil:
			return fd, nil
		case err == unix.ENOENT && !made:
			if err := os.MkdirAll(s.dir, 0o755); err != nil {
				return -1, err
			}
			made = true
		case err != unix.EINTR:
			return -1, &os.PathError{Op: "open", Path: s.lockName(), Err: err}
		}
	}
}

// load reads the leases if somebody else changed the directory, or anyway.
func (s *store) load(force bool) error {
	var st unix.Stat_t
	if err := unix.Stat(s.dir, &st); err != nil {
		return fmt.Errorf("host-local: %s: %w", s.dir, err)
	}
	if !force && s.leases != nil && st.Mtim == s.mtime {
		return nil
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("host-local: %w", err)
	}
	leases, spares := make(map[netip.Addr]string, len(entries)), []string(nil)
	s.leases, s.last, s.spares = nil, nil, nil // a part of them would be taken for all
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), sparePrefix) {
			spares = append(spares, e.Name())
			continue
		}
		a, err := netip.ParseAddr(e.Name())
		if err != nil || !e.Type().IsRegular() {
			continue
		}
		text, err := readLease(filepath.Join(s.dir, e.Name()))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("host-local: lease: %w", err)
		}
		b := strings.TrimSpace(text)
		if (b == "" || stale(text, a)) && err == nil {
			// Its writer was killed half way, or the machine lost power before it was on disk: nobody else is at it, since we
			// have the lock. It is of no one, and would be for good.
			if err := os.Remove(filepath.Join(s.dir, e.Name())); err != nil && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("host-local: lease without an owner: %w", err)
			}
			continue
		}
		leases[a] = b
	}
	s.leases, s.spares = leases, spares
	return nil
}

func readLease(path string) (string, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b := make([]byte, maxLease)
	n, err := f.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		return "", err
	}
	return string(b[:n]), nil
}

// stamp marks the directory as the one that the index is of.
func (s *store) stamp() {
	var st unix.Stat_t
	if unix.Stat(s.dir, &st) == nil && st.Mtim == s.mtime {
		return // nothing was changed
	}
	var now unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_REALTIME, &now)
	if err == nil {
		err = unix.UtimesNanoAt(unix.AT_FDCWD, s.dir, []unix.Timespec{{Nsec: unix.UTIME_OMIT}, now}, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err == nil {
		err = unix.Stat(s.dir, &st)
	}
	if s.mtime = st.Mtim; err != nil || s.mtime != now { // a file system that keeps no nanoseconds
		s.leases = nil
	}
}

func content(id, ifname string) string { return strings.TrimSpace(id) + "\r\n" + ifname }

// reserve writes a lease; false when the address is taken.
func (s *store) reserve(a netip.Addr, id, ifname, set string) (bool, error) {
	if _, taken := s.leases[a]; taken {
		return false, nil
	}
	path := filepath.Join(s.dir, a.String())
	err := s.lease(path, content(id, ifname)+mark(a))
	if errors.Is(err, os.ErrExist) {
		s.leases[a] = ""
		return false, nil
	}
	if err == nil {
		if err = faultpoint.Hit("hostlocal.leased"); err == nil {
			err = s.setLast(set, a)
		}
		if err != nil {
			err = errors.Join(err, os.Remove(path))
		}
	}
	if err != nil {
		return false, fmt.Errorf("host-local: lease: %w", err)
	}
	s.leases[a] = content(id, ifname)
	return true, nil
}

// of returns the addresses of an attachment. Leases without an interface name are of old versions of the plugin.
func (s *store) of(id, ifname string) []netip.Addr {
	var as []netip.Addr
	lease, old := content(id, ifname), strings.TrimSpace(id)
	for a, c := range s.leases {
		if c == lease || c == old {
			as = append(as, a)
		}
	}
	return as
}
