package imagestore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/seed-9a14075a/cri-server/internal/smallfile"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore/snapshot"
	"github.com/seed-9a14075a/cri-server/pkg/rootfs"
)

// snapshotRecord is snapshots/KEY/snapshot.json. It is not synced: after a power cut no container is left to use it.
type snapshotRecord struct {
	Key    string          `json:"key"`
	Image  digest.Digest   `json:"image"`
	Layers []digest.Digest `json:"layers"`
	Driver string          `json:"driver"`

	// damaged: the record can't be read, and nobody knows which layers the snapshot needs.
	damaged bool
}

var keyPattern = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)

func checkKey(key string) error {
	if !keyPattern.MatchString(key) {
		return fmt.Errorf("snapshot key %.150q: %w", key, errdefs.ErrInvalidArgument)
	}
	return nil
}

// viewPrefix marks the snapshots that stand in for a view where layers can't be used as they are.
const viewPrefix = "view-"

// Snapshot implements Store.
func (s *Disk) Snapshot(ctx context.Context, key, imageID string) (rootfs.Rootfs, error) {
	if strings.HasPrefix(key, viewPrefix) {
		return rootfs.Rootfs{}, fmt.Errorf("snapshot key %q: the prefix is the store's own: %w", key, errdefs.ErrInvalidArgument)
	}
	r, err := s.snapshot(ctx, key, imageID)
	if err != nil {
		return rootfs.Rootfs{}, fmt.Errorf("snapshot %s: %w", key, err)
	}
	return r, nil
}

func (s *Disk) snapshot(ctx context.Context, key, imageID string) (rootfs.Rootfs, error) {
	if err := checkKey(key); err != nil {
		return rootfs.Rootfs{}, err
	}
	_, _, err := s.snapF.do(ctx, s.life, &s.running, key, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, s.makeSnapshot(ctx, key, imageID)
	})
	if err != nil {
		return rootfs.Rootfs{}, err
	}
	s.mu.RLock()
	have, ok := s.snapshots[key]
	s.mu.RUnlock()
	switch {
	case !ok:
		return rootfs.Rootfs{}, fmt.Errorf("removed meanwhile: %w", errdefs.ErrAborted)
	case have.damaged:
		return rootfs.Rootfs{}, fmt.Errorf("its record is damaged: remove it: %w", errdefs.ErrDataLoss)
	case !s.isImage(have.Image, imageID):
		return rootfs.Rootfs{}, fmt.Errorf("exists for image %s: %w", have.Image, errdefs.ErrAlreadyExists)
	case have.Driver != s.driver.Name():
		return rootfs.Rootfs{}, fmt.Errorf("was made by snapshotter %s, now %s is in use: %w", have.Driver, s.driver.Name(), errdefs.ErrFailedPrecondition)
	}
	layers, err := s.chain(have.Layers)
	if err != nil {
		return rootfs.Rootfs{}, err
	}
	return s.driver.Rootfs(s.path("snapshots", key), layers), nil
}

// isImage reports whether ref means the image id, which may be gone from the table.
func (s *Disk) isImage(id digest.Digest, ref string) bool {
	if given, ok := asID(ref); ok {
		return given == id
	}
	img, err := s.Get(ref)
	return err == nil && img.ID == id.String()
}

func (s *Disk) makeSnapshot(ctx context.Context, key, imageID string) error {
	if err := s.unpacked(ctx, imageID); err != nil {
		return err
	}
	s.mu.Lock()
	if _, ok := s.snapshots[key]; ok {
		s.mu.Unlock()
		return nil
	}
	img, err := s.find(imageID)
	if err != nil {
		s.mu.Unlock()
		return err
	}
	ids := slices.Clone(img.diffIDs())
	release := s.holdLocked(ids) // in one step with the look-up
	s.mu.Unlock()
	defer release()
	// The interpreter that the image was pulled for may be gone.
	if err := s.runs(img.config.Platform); err != nil && !strings.HasPrefix(key, viewPrefix) {
		return err
	}

	layers, err := s.chain(ids)
	if err != nil {
		return err
	}
	tmp, err := s.snapshotDir()
	if err != nil {
		return err
	}
	done := false
	defer func() {
		if !done {
			_ = s.remove(tmp)
		}
	}()
	if err := s.fill(ctx, tmp, key, img.ID, layers); err != nil {
		return fmt.Errorf("%s: %w", s.driver.Name(), err)
	}
	if err := step("snapshot.prepared"); err != nil {
		return err
	}
	r := &snapshotRecord{Key: key, Image: img.ID, Layers: ids, Driver: s.driver.Name()}
	if err := writeSnapshotRecord(tmp, r); err != nil {
		return err
	}
	if err := step("snapshot.written"); err != nil {
		return err
	}
	if err := smallfile.Rename(tmp, s.path("snapshots", key)); err != nil {
		return err
	}
	done = true
	s.mu.Lock()
	s.snapshots[key] = r
	s.mu.Unlock()
	return nil
}

// fill makes a snapshot in dir, by the fastest way that the driver has: from the image's view, which is made first if need be.
func (s *Disk) fill(ctx context.Context, dir, key string, image digest.Digest, layers []snapshot.Layer) error {
	c, ok := s.driver.(snapshot.Cloner)
	if !ok || strings.HasPrefix(key, viewPrefix) {
		return s.driver.Prepare(ctx, dir, layers)
	}
	view := viewPrefix + image.Encoded()
	if _, err := s.snapshot(ctx, view, image.String()); err != nil {
		return err
	}
	err := c.Clone(dir, s.path("snapshots", view))
	if errors.Is(err, os.ErrNotExist) { // the image was removed meanwhile, and its view with it
		return s.driver.Prepare(ctx, dir, layers)
	}
	return err
}

// View implements Store. It keeps nothing: who mounts it for longer than the image is sure to stay takes a Snapshot and
// mounts that read-only. Where the snapshot driver can't use layers as they are, the view is made once per image and
// goes with it.
func (s *Disk) View(imageID string) (rootfs.Rootfs, error) {
	if err := s.unpacked(s.life, imageID); err != nil {
		return rootfs.Rootfs{}, fmt.Errorf("view: %w", err)
	}
	s.mu.RLock()
	img, err := s.find(imageID)
	s.mu.RUnlock()
	if err != nil {
		return rootfs.Rootfs{}, fmt.Errorf("view: %w", err)
	}
	layers, err := s.chain(img.diffIDs())
	if err != nil {
		return rootfs.Rootfs{}, fmt.Errorf("view: %w", err)
	}
	if r, ok := s.driver.View(layers); ok {
		return r, nil
	}
	r, err := s.snapshot(s.life, viewPrefix+img.ID.Encoded(), img.ID.String())
	if err != nil {
		return rootfs.Rootfs{}, fmt.Errorf("view: %w", err)
	}
	if r.Upper != "" { // nothing writes there: it is the topmost lower layer
		r.Lower = append([]string{r.Upper}, r.Lower...)
		r.Upper, r.Work = "", ""
	}
	return r, nil
}

// SnapshotUsage implements Store.
func (s *Disk) SnapshotUsage(key string) (Usage, error) {
	s.mu.RLock()
	_, ok := s.snapshots[key]
	s.mu.RUnlock()
	if !ok {
		return Usage{}, fmt.Errorf("snapshot %.150s: %w", key, errdefs.ErrNotFound)
	}
	bytes, inodes, err := s.driver.Usage(s.path("snapshots", key))
	if err != nil {
		return Usage{}, fmt.Errorf("snapshot %s: usage: %w", key, err)
	}
	return Usage{Mountpoint: s.cfg.Root, Bytes: uint64(bytes), Inodes: uint64(inodes), Time: time.Now()}, nil
}

// RemoveSnapshot implements Store. The name is free when it returns; the files are removed behind it, and Close waits
// for that.
func (s *Disk) RemoveSnapshot(_ context.Context, key string) error {
	if err := checkKey(key); err != nil {
		return err
	}
	s.mu.RLock()
	r, ok := s.snapshots[key]
	s.mu.RUnlock()
	if !ok {
		return nil
	}
	if s.life.Err() != nil {
		return fmt.Errorf("remove snapshot %s: %w", key, errClosed)
	}
	if err := step("snapshot.remove"); err != nil {
		return fmt.Errorf("remove snapshot %s: %w", key, err)
	}
	trash := s.path("trash", randomName())
	if err := smallfile.Rename(s.path("snapshots", key), trash); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove snapshot %s: %w", key, err)
	}
	s.mu.Lock()
	delete(s.snapshots, key)
	s.mu.Unlock()
	s.running.Go(func() {
		sweep := func() error { return s.sweep(r.Layers, nil) }
		if r.damaged { // it kept all layers from being removed
			sweep = s.sweepAll
		}
		if err := errors.Join(step("snapshot.removed"), s.retire(trash, r), sweep()); err != nil {
			s.log.Warn("image store: files of a snapshot left until the next start", "snapshot", key, "error", err)
		}
	})
	return nil
}

// discard removes a snapshot's directory.
func (s *Disk) discard(dir string) error {
	if d, ok := s.driver.(snapshot.Discarder); ok {
		d.Discard(dir)
	}
	return s.remove(dir)
}

// Snapshots implements Store.
func (s *Disk) Snapshots() []string {
	s.mu.RLock()
	defer s.mu.RUnlock()
	out := make([]string, 0, len(s.snapshots))
	for key := range s.snapshots {
		if !strings.HasPrefix(key, viewPrefix) {
			out = append(out, key)
		}
	}
	slices.Sort(out)
	return out
}
