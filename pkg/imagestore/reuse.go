package imagestore

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/imagestore/snapshot"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore/unpack"
)

// maxReuse is how many directories of removed snapshots are kept for new ones: as many as a busy node has on their way.
const maxReuse = 16

// recordName is a snapshot's record, in its directory.
const recordName = "snapshot.json"

// snapshotDir makes a directory for a snapshot that is being made, or takes that of one which was removed, with nothing in it
// but the old record: making a directory or a file takes a file system much longer than changing one. The directories that are
// mounted are made anew: an old mount may still be there, and overlayfs refuses to share them.
func (s *Disk) snapshotDir() (string, error) {
	s.mu.Lock()
	n := len(s.reuse)
	if n == 0 {
		s.mu.Unlock()
		return s.ingestDir()
	}
	dir := s.reuse[n-1]
	s.reuse = s.reuse[:n-1]
	s.mu.Unlock()
	return dir, nil
}

// retire removes the directory of a snapshot, which is in the trash, or keeps what of it another snapshot can use.
func (s *Disk) retire(trash string, r *snapshotRecord) error {
	if r.damaged || !s.wantsReuse() {
		return s.discard(trash)
	}
	dir := s.path("reuse", filepath.Base(trash))
	if err := s.strip(trash); err != nil || os.Rename(trash, dir) != nil {
		return s.discard(trash)
	}
	s.mu.Lock()
	keep := len(s.reuse) < maxReuse
	if keep {
		s.reuse = append(s.reuse, dir)
	}
	s.mu.Unlock()
	if keep {
		return nil
	}
	return s.remove(dir)
}

// strip removes all that is in a snapshot's directory but its record.
func (s *Disk) strip(dir string) error {
	if d, ok := s.driver.(snapshot.Discarder); ok {
		d.Discard(dir)
	}
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	names, err := unpack.ReadNames(fd)
	if err != nil {
		return err
	}
	var record unix.Stat_t
	if err := unix.Fstatat(fd, recordName, &record, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if record.Mode&unix.S_IFMT != unix.S_IFREG || record.Nlink != 1 {
		return fmt.Errorf("%s is no file of its own: %w", recordName, errdefs.ErrDataLoss)
	}
	for _, name := range names {
		if name == recordName {
			continue
		}
		if err := unpack.RemoveAllAt(fd, name); err != nil {
			return err
		}
	}
	return nil
}

func (s *Disk) wantsReuse() bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.reuse) < maxReuse && s.life.Err() == nil
}

// emptyReuse removes what no snapshot has used. The store opens, or closes.
func (s *Disk) emptyReuse() error {
	s.mu.Lock()
	s.reuse = nil
	s.mu.Unlock()
	err := emptyDir(s.path("reuse"))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// writeSnapshotRecord writes the record of the snapshot in dir, over that of the one which was there before: it is not cut
// first, since ext4 writes out a file that was (auto_da_alloc, ext4(5)).
func writeSnapshotRecord(dir string, r *snapshotRecord) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	b = append(b, '\n')
	f, err := os.OpenFile(filepath.Join(dir, recordName), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	var st os.FileInfo
	if err == nil {
		st, err = f.Stat()
	}
	if err == nil && st.Size() > int64(len(b)) {
		err = f.Truncate(int64(len(b)))
	}
	return errors.Join(err, f.Close())
}
