package imagestore

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// The spare is a file that takes up room on the disk, so that an image can be removed when it is full: the table without it
// is written to a new file before anything is deleted, and kubelet removes images just then. It is given up for that alone,
// and for what the start of the store writes.
const (
	spareName = "spare"
	minSpare  = 64 << 10
)

// full tells whether err says that there is no room, on the disk or in a quota.
func full(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// restock makes the spare large enough for a file of n bytes, if it can. The caller holds commit, or is alone.
func (s *Disk) restock(n int) {
	want := int64(minSpare + 2*n)
	if s.spare >= want {
		return
	}
	f, err := os.OpenFile(s.path(spareName), os.O_WRONLY|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, want); errors.Is(err, unix.EOPNOTSUPP) {
		_, err = f.Write(make([]byte, want))
		if err != nil {
			return
		}
	} else if err != nil {
		return
	}
	s.spare = want
}

// writeSparing writes a file as writeFile does, in the spare's place if there is no other.
func (s *Disk) writeSparing(name string, b []byte) error {
	err := writeFile(name, b)
	if !full(err) {
		return err
	}
	s.spare = 0
	if rerr := os.Remove(s.path(spareName)); rerr != nil {
		return err
	}
	s.log.Warn("image store: the disk is full; its spare room is used", "error", err)
	return writeFile(name, b)
}
