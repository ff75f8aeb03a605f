package imagestore

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/smallfile"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore/snapshot"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore/unpack"
)

// maxReuse is how many directories of removed snapshots are kept for new ones.
const maxReuse = smallfile.Enough

// recordName is a snapshot's record, in its directory.
const recordName = "snapshot.json"

// spread tells ext4 that what is made in dir has nothing to do with each other (chattr(1), T): it puts each directory made there
// into the block group with the fewest, and what is made in that goes there, too. An overlay makes seven files and directories
// when it is mounted, which are gone with it, and without a journal ext4 looks at each one that was freed in the group in the last
// minutes before it makes another. Other file systems don't know the flag, and none needs it.
func spread(dir string) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	var fs unix.Statfs_t
	if unix.Fstatfs(fd, &fs) != nil || fs.Type != unix.EXT4_SUPER_MAGIC {
		return
	}
	const topDir = 0x20000 // FS_TOPDIR_FL, linux/fs.h
	if flags, err := unix.IoctlGetUint32(fd, unix.FS_IOC_GETFLAGS); err == nil && flags&topDir == 0 {
		_ = unix.IoctlSetPointerInt(fd, unix.FS_IOC_SETFLAGS, int(flags|topDir))
	}
}

// snapshotDir makes a directory for a snapshot that is being made, or takes that of one which was removed, with nothing in it
// but the old record: making a directory or a file takes a file system much longer than changing one. The directories that are
// mounted are made anew: an old mount may still be there, and overlayfs refuses to share them.
func (s *Disk) snapshotDir() (string, error) {
	s.mu.Lock()
	if len(s.reuse) == 0 {
		s.mu.Unlock()
		dir := s.path("reuse", randomName())
		return dir, os.Mkdir(dir, 0o700)
	}
	dir := s.reuse[0] // the one that was out of use for longest, see spread
	s.reuse = s.reuse[1:]
	s.mu.Unlock()
	return dir, nil
}

// retire removes the directory of a snapshot, which is in the trash, or keeps what of it another snapshot can use.
func (s *Disk) retire(trash string, r *snapshotRecord) error {
	if r.damaged || !s.wantsReuse() {
		return s.discard(trash)
	}
	dir := s.path("reuse", filepath.Base(trash))
	if err := s.strip(trash); err != nil || smallfile.Rename(trash, dir) != nil {
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

// writeSnapshotRecord writes the record of the snapshot in dir, over that of the one which was there before.
func writeSnapshotRecord(dir string, r *snapshotRecord) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return smallfile.Overwrite(filepath.Join(dir, recordName), append(b, '\n'), 0o600)
}
