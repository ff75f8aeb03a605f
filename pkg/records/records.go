// Package records keeps what the server must know after a restart: one file per object, below one directory per kind.
//
// A new record is written behind the former ones in its file, and the last one counts, or, where a killed writer has left the
// beginning of another, the one before: a reader sees the old record or the new one. That is one write and no new inode; a file's first record, and one for which the file
// would get too long, is written beside and renamed. The file of a deleted record is
// kept, under another name, for the next new one (package smallfile). Nothing is synced: pods die with the machine, so a record needs to
// outlive the process only. What a power cut leaves is caught by a checksum, and the boot id tells a record of this boot
// from one of an earlier.
//
// A server from before records were appended reads files with one record only, and takes others for damaged. Condense, at the
// end of a server, leaves such files: after an orderly stop an older server can take over, after a crash it can when this one
// has run and been stopped once more.
//
// A record is two lines: JSON, with its version, id and boot id, and the CRC-32C of the first line.
// A record that can't be read (damaged, cut short, written by a newer server) is still returned by Load, with the reason,
// so that the object can be listed and removed. Unknown fields of a record are lost when an older server writes it anew:
// a field that an older server must not drop needs a new version, which that server then refuses to interpret.
//
// The owner of an object serialises Put and Delete of one id; everything else is safe for concurrent use.
package records

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/smallfile"
	"github.com/seed-9a14075a/cri-server/pkg/faultpoint"
)

const (
	suffix     = ".json"
	tempPrefix = ".tmp-"
	// maxSize is far above any record; it keeps a file that is not ours from filling the memory.
	maxSize = 16 << 20
	// rewriteSize is how long a file may get by records that are of the past: some ten changes of a container.
	rewriteSize = 32 << 10
)

// Store holds the records of one kind. Open makes it.
type Store[T any] struct {
	dir     string
	version int
	boot    string
	temp    atomic.Uint64
	spares  *smallfile.Spares
}

// Entry is one record as Load found it.
type Entry[T any] struct {
	ID string
	// Value is the record. With Err set it is what could still be made out of it, perhaps nothing: good to show, not
	// to act on.
	Value T
	// Err says why the record can't be trusted: errdefs.ErrDataLoss for damage, errdefs.ErrFailedPrecondition for a
	// record of a newer server.
	Err error
	// SameBoot is true when the record was written since the machine started; processes, mounts and cgroups of
	// others are gone.
	SameBoot bool
}

// BootID is the kernel's id of this boot (random(4)).
var BootID = sync.OnceValues(func() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
})

// Open uses dir for records of the given version (at least 1), makes it if it is missing (mode 0700), and removes what a
// killed writer left half written. One process uses a directory at a time; the caller's lock sees to that.
func Open[T any](dir string, version int) (*Store[T], error) {
	if version < 1 {
		return nil, fmt.Errorf("records %s: version %d: %w", dir, version, errdefs.ErrInvalidArgument)
	}
	boot, err := BootID()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("records: %w", err)
	}
	s := &Store[T]{dir: dir, version: version, boot: boot, spares: smallfile.NewSpares(dir, tempPrefix+"spare-", smallfile.Enough)}
	names, err := s.names()
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		if strings.HasPrefix(n, tempPrefix) {
			if err := os.Remove(filepath.Join(dir, n)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, fmt.Errorf("records: %w", err)
			}
		}
	}
	return s, nil
}

// Put writes the record of id, replacing an older one.
func (s *Store[T]) Put(id string, v T) error {
	if err := checkID(id); err != nil {
		return err
	}
	b, err := encode(id, s.version, s.boot, v)
	if err != nil {
		return fmt.Errorf("record %s: %w", id, err)
	}
	done, there, err := appendTo(s.path(id), b)
	if err == nil && !done {
		err = s.replace(id, b, there)
	}
	if err != nil {
		return fmt.Errorf("record %s: %w", id, err)
	}
	faultpoint.Pass("records.put.renamed")
	return nil
}

// replace makes the file of id, with one record. there: it takes the place of another.
func (s *Store[T]) replace(id string, b []byte, there bool) error {
	temp, err := s.write(b, there)
	if err == nil {
		err = faultpoint.Hit("records.put.written")
	}
	if err == nil {
		err = smallfile.Rename(temp, s.path(id))
	}
	if err != nil && temp != "" {
		_ = os.Remove(temp)
	}
	return err
}

// Delete removes the record of id; it is no error if there is none.
func (s *Store[T]) Delete(id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	if err := faultpoint.Hit("records.delete"); err != nil {
		return fmt.Errorf("record %s: %w", id, err)
	}
	if err := s.spares.Remove(s.path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("record %s: %w", id, err)
	}
	faultpoint.Pass("records.deleted")
	return nil
}

// Get reads one record from disk. errdefs.ErrNotFound, or the reason as in Entry.Err.
func (s *Store[T]) Get(id string) (T, error) {
	var zero T
	if err := checkID(id); err != nil {
		return zero, err
	}
	e := s.read(id)
	return e.Value, e.Err
}

// Load reads all records, ordered by id. Its error is about the directory; that of a record is in its Entry. Files whose
// names are not ids with the suffix .json are not ours and are passed over.
func (s *Store[T]) Load() ([]Entry[T], error) {
	names, err := s.names()
	if err != nil {
		return nil, err
	}
	entries := make([]Entry[T], 0, len(names))
	for _, n := range names {
		id, ok := strings.CutSuffix(n, suffix)
		if !ok || checkID(id) != nil {
			continue
		}
		entries = append(entries, s.read(id))
	}
	return entries, nil
}

func (s *Store[T]) read(id string) Entry[T] {
	b, err := readFile(s.path(id))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = errdefs.ErrNotFound
		}
		return Entry[T]{ID: id, Err: fmt.Errorf("record %s: %w", id, err)}
	}
	v, boot, err := decode[T](b, id, s.version)
	if err != nil {
		err = fmt.Errorf("record %s: %w", s.path(id), err)
	}
	return Entry[T]{ID: id, Value: v, Err: err, SameBoot: boot == s.boot}
}

func (s *Store[T]) path(id string) string { return filepath.Join(s.dir, id+suffix) }

func (s *Store[T]) names() ([]string, error) {
	list, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, fmt.Errorf("records: %w", err)
	}
	names := make([]string, len(list))
	for i, e := range list {
		names[i] = e.Name()
	}
	return names, nil
}

// checkID lets only lower-case hex digits pass, as CRI ids are made of here, so that an id can never be a path.
func checkID(id string) error {
	if id == "" || len(id) > 128 || strings.Trim(id, "0123456789abcdef") != "" {
		return fmt.Errorf("record id %.130q: not 1 to 128 lower-case hex digits: %w", id, errdefs.ErrInvalidArgument)
	}
	return nil
}

// appendTo writes a record behind those in the file. done is false when there is no file, when it would get too long, and when
// its end is not that of a whole record, as after a writer's death. On error the file is as it was.
func appendTo(path string, b []byte) (done, there bool, err error) {
	// Not by os: this file is not waited for, and its owner knows it by its name only.
	fd, err := ignoringEINTR(func() (int, error) { return unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0) })
	if errors.Is(err, unix.ENOENT) {
		return false, false, nil
	}
	if errors.Is(err, unix.ELOOP) { // open(2), O_NOFOLLOW
		return false, true, nil
	}
	if err != nil {
		return false, true, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return false, true, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size+int64(len(b)) > rewriteSize || st.Size <= int64(sumSize) {
		return false, true, nil
	}
	var end [sumSize + 1]byte
	n, err := ignoringEINTR(func() (int, error) { return unix.Pread(fd, end[:], st.Size-int64(len(end))) })
	if err != nil || n != len(end) || !isSum(end[:]) {
		return false, true, nil
	}
	if err := faultpoint.Hit("records.append.open"); err != nil {
		return false, true, err
	}
	if n, err = ignoringEINTR(func() (int, error) { return unix.Pwrite(fd, b, st.Size) }); err == nil && n < len(b) {
		err = unix.ENOSPC
	}
	if err == nil {
		err = faultpoint.Hit("records.append.written")
	}
	if err != nil {
		return false, true, errors.Join(&fs.PathError{Op: "write", Path: path, Err: err}, unix.Ftruncate(fd, st.Size))
	}
	return true, true, nil
}

func ignoringEINTR(f func() (int, error)) (int, error) {
	for {
		if n, err := f(); err != unix.EINTR {
			return n, err
		}
	}
}

// write makes a file with one record, beside the others. replaces: it will take the place of one of them.
func (s *Store[T]) write(b []byte, replaces bool) (path string, err error) {
	if err := faultpoint.Hit("records.put.open"); err != nil {
		return "", err
	}
	if !replaces {
		return s.spares.Temp(b, 0o600)
	}
	// The name is ours alone: a leftover of the same name went away in Open.
	path = filepath.Join(s.dir, tempPrefix+strconv.FormatUint(s.temp.Add(1), 36))
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return path, err
	}
	// ext4 starts writing out a file with delayed allocation when it is renamed over another (auto_da_alloc, ext4(5)),
	// which costs three times as much as all the rest. Allocated blocks spare us that; where fallocate(2) is not
	// supported the write does it all.
	_ = unix.Fallocate(int(f.Fd()), 0, 0, int64(len(b)))
	_, err = f.Write(b)
	return path, errors.Join(err, f.Close())
}

func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file: %w", path, errdefs.ErrDataLoss)
	}
	if st.Size() > maxSize {
		return nil, fmt.Errorf("%s has %d bytes: %w", path, st.Size(), errdefs.ErrDataLoss)
	}
	return io.ReadAll(io.LimitReader(f, maxSize))
}
