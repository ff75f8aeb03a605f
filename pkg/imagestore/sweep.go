package imagestore

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/imagestore/unpack"
)

// sweep removes those of the layers and blobs that nothing needs any more, and frees their disk space before it
// returns. What it removes is out of Usage first.
func (s *Disk) sweep(layers, blobs []digest.Digest) error {
	var trash []string
	away := func(name string) error {
		t := s.path("trash", randomName())
		err := os.Rename(name, t)
		if err == nil {
			trash = append(trash, t)
		}
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	s.removeLeftovers()
	s.rename.Lock()
	var err error
	for _, v := range s.forget(layers, blobs) {
		if aerr := away(v.name); aerr != nil { // the next sweep tries again
			s.mu.Lock()
			v.keep()
			s.mu.Unlock()
			err = errors.Join(err, aerr)
		}
	}
	s.rename.Unlock()
	err = errors.Join(err, step("image.trash.moved"))
	for _, t := range trash {
		err = errors.Join(err, s.remove(t))
	}
	return err
}

// remove removes a directory below ingest or trash. What can't be removed is tried again by the next sweep; the next start
// removes it in any case.
func (s *Disk) remove(dir string) error {
	err := removeAll(dir)
	if err != nil {
		s.mu.Lock()
		s.leftovers = append(s.leftovers, dir)
		s.mu.Unlock()
	}
	return err
}

// removeLeftovers tries again what remove could not do.
func (s *Disk) removeLeftovers() {
	s.mu.Lock()
	dirs := s.leftovers
	s.leftovers = nil
	s.mu.Unlock()
	for _, dir := range dirs {
		if err := s.remove(dir); err != nil {
			s.log.Warn("image store: what is left of a removal can't be removed", "error", err)
		}
	}
}

// sweepAll sweeps everything, what failed pulls left included.
func (s *Disk) sweepAll() error {
	s.mu.RLock()
	layers, blobs := slices.Collect(maps.Keys(s.layers)), slices.Collect(maps.Keys(s.blobs))
	s.mu.RUnlock()
	return s.sweep(layers, blobs)
}

// Garbage implements Store.
func (s *Disk) Garbage() (names []string) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, sn := range s.snapshots {
		if sn.damaged {
			return nil
		}
	}
	needed := s.needed()
	add := func(id digest.Digest, path string) {
		if name, err := filepath.Rel(s.cfg.Root, path); err == nil && !needed[id] {
			names = append(names, name)
		}
	}
	for id := range s.layers {
		add(id, s.layerPath(id))
	}
	for id := range s.blobs {
		add(id, s.blobPath(id))
	}
	slices.Sort(names)
	return names
}

// Sweep implements Store.
func (s *Disk) Sweep() error { return s.sweepAll() }

// victim is something that nobody needs.
type victim struct {
	name string
	keep func() // takes it back into memory; the caller holds mu
}

// forget drops from memory what nobody needs, and returns where it is.
func (s *Disk) forget(layers, blobs []digest.Digest) (gone []victim) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, sn := range s.snapshots {
		if sn.damaged {
			return nil
		}
	}
	needed := s.needed()
	for _, id := range layers {
		l, ok := s.layers[id]
		if !ok || needed[id] {
			continue
		}
		damaged := s.damaged[id]
		delete(s.layers, id)
		delete(s.damaged, id)
		s.count(-l.Bytes-l.frameBytes, -l.Inodes-l.frameInodes)
		gone = append(gone, victim{s.layerPath(id), func() {
			if s.layers[id] = l; damaged {
				s.damaged[id] = true
			}
			s.count(l.Bytes+l.frameBytes, l.Inodes+l.frameInodes)
		}})
	}
	for _, id := range blobs {
		b, ok := s.blobs[id]
		if !ok || needed[id] {
			continue
		}
		delete(s.blobs, id)
		s.count(-b.allocated, -1)
		gone = append(gone, victim{s.blobPath(id), func() {
			s.blobs[id] = b
			s.count(b.allocated, 1)
		}})
	}
	return gone
}

// needed are the digests that images, snapshots and transfers rely on. The caller holds mu.
func (s *Disk) needed() map[digest.Digest]bool {
	n := map[digest.Digest]bool{}
	for _, r := range s.images {
		for _, id := range r.diffIDs() {
			n[id] = true
		}
		for _, id := range r.content() {
			n[id] = true
		}
	}
	for _, sn := range s.snapshots {
		for _, id := range sn.Layers {
			n[id] = true
		}
	}
	for id := range s.held {
		n[id] = true
	}
	return n
}

// inTable reports whether an image that was acknowledged, or a snapshot, relies on any of the digests.
func (s *Disk) inTable(ids ...digest.Digest) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, r := range s.images {
		for _, id := range ids {
			if slices.Contains(r.diffIDs(), id) || slices.Contains(r.content(), id) {
				return true
			}
		}
	}
	for _, sn := range s.snapshots {
		for _, id := range ids {
			if slices.Contains(sn.Layers, id) {
				return true
			}
		}
	}
	return false
}

// snapshotsUse reports whether a snapshot relies on the layer. The caller holds mu.
func (s *Disk) snapshotsUse(id digest.Digest) bool {
	for _, sn := range s.snapshots {
		if sn.damaged || slices.Contains(sn.Layers, id) {
			return true
		}
	}
	return false
}

// count changes the usage. The caller holds mu.
func (s *Disk) count(bytes, inodes int64) {
	s.usage.Bytes = uint64(int64(s.usage.Bytes) + bytes)
	s.usage.Inodes = uint64(int64(s.usage.Inodes) + inodes)
}

// Usage implements Store: blobs and unpacked layers, as allocated on disk. What containers wrote is in SnapshotUsage.
func (s *Disk) Usage() Usage {
	s.mu.RLock()
	defer s.mu.RUnlock()
	u := s.usage
	u.Mountpoint, u.Time = s.cfg.Root, time.Now()
	return u
}

// removeAll is os.RemoveAll for trees that hostile hands made: of any depth.
func removeAll(name string) error {
	dir, err := unix.Open(filepath.Dir(name), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		err = unpack.RemoveAllAt(dir, filepath.Base(name))
		_ = unix.Close(dir)
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", name, err)
	}
	return nil
}

func emptyDir(name string) error {
	entries, err := os.ReadDir(name)
	for _, e := range entries {
		err = errors.Join(err, removeAll(filepath.Join(name, e.Name())))
	}
	return err
}
