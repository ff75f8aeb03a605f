package imagestore

import (
	"bytes"
	"errors"
	"os"
	"strings"
)

// bootID names this run of the kernel, random(4).
func bootID() []byte {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil
	}
	return bytes.TrimSpace(b)
}

// begin finds out how the store was left. A process that died loses nothing that was written; a machine that went down
// may, if its disk or file system did not keep its word. Then sizes and types are checked at once, before anything is
// listed, and content in the background; what is damaged is repaired or listed no more.
func (s *Disk) begin() error {
	before, err := os.ReadFile(s.path("open"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	now := bootID()
	unclean := err == nil && !bytes.Equal(before, now)
	if unclean {
		s.log.Warn("image store: the machine went down while the store was open; checking it")
		if err := s.checkNow(); err != nil {
			return err
		}
	}
	if !bytes.Equal(before, now) || err != nil {
		if err := s.writeSparing(s.path("open"), now); err != nil {
			if !full(err) {
				return err
			}
			s.log.Error("image store: the disk is full; should the machine go down now, the store is not checked", "error", err)
		}
	}
	s.restock(s.tableSize)
	if unclean {
		s.running.Go(func() {
			r, err := s.Repair(s.life, false)
			switch {
			case s.life.Err() != nil: // closed: the next start checks
			case err != nil:
				s.log.Error("image store: check after an unclean stop", "error", err)
			default:
				s.log.Info("image store: checked after an unclean stop", "blobs", r.Blobs, "layers", r.Layers, "problems", len(r.Problems))
			}
			s.checked.Store(s.life.Err() == nil)
		})
		return nil
	}
	s.checked.Store(true)
	return nil
}

// markClosed marks the store as left in order, unless a check that is due was not finished: then the next start does it.
func (s *Disk) markClosed() {
	if s.checked.Load() {
		_ = os.Remove(s.path("open"))
		return
	}
	_ = s.writeSparing(s.path("open"), []byte("check due"))
}

// checkNow looks at all sizes, rebuilds layers from good blobs, and drops images that need more than that.
func (s *Disk) checkNow() error {
	r, err := s.Verify(s.life, true)
	if err != nil || len(r.Problems) == 0 {
		return err
	}
	if err := s.setAside(r.Problems); err != nil {
		return err
	}
	for _, id := range brokenImages(r.Problems) {
		img := s.images[id]
		if err := s.complete(s.life, noSource{}, img); err != nil {
			s.log.Error("image store: image dropped, the next pull brings it back", "image", id, "tags", strings.Join(img.Tags, " "), "error", err)
			if err := s.dropImages(s.life, brokenImages([]Problem{{Images: []string{id.String()}}})); err != nil {
				return err
			}
		}
	}
	return nil
}

// Checked reports whether no check after an unclean stop is due or under way.
func (s *Disk) Checked() bool { return s.checked.Load() }
