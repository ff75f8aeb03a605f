package imagestore

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/faultpoint"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore/registry"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore/snapshot"
)

// Disk is the Store on a local file system.
//
//	lock                        flock(2) of the process that has the store open
//	version                     format of what is below
//	oci-layout, blobs/A/H       content by digest
//	layers/A/H/{fs,layer.json,marks.json,files}   the unpacked layer with this diff ID, and the manifest of its files
//	open                        boot ID of the system that has or had the store open; gone after Close
//	snapshots/KEY/…             writable layers
//	targets/NAME/…              layers of mount points, see targetSets
//	images.json                 the table of images
//	imported.json               the archives of the import directory that were imported
//	ingest/, trash/             what is being made or removed; emptied when the store opens
//	reuse/                      what new snapshots use of removed ones, and where they are made; emptied when the store opens and closes
type Disk struct {
	cfg    Config
	log    *slog.Logger
	lock   *os.File
	client *registry.Client
	driver snapshot.Driver
	why    string // the driver was chosen
	slots  *semaphore.Weighted
	sync   *syncer

	// life ends with Close; running are transfers and removals that Close waits for.
	life    context.Context
	end     context.CancelCauseFunc
	running sync.WaitGroup
	closed  sync.Once
	// checked: no check after an unclean stop is due.
	checked atomic.Bool
	// pinned are patterns of names.
	pinned atomic.Pointer[[]string]
	// importing is held by ImportDir.
	importing sync.Mutex

	pulls  flights[*Image]
	layerF flights[struct{}]
	snapF  flights[struct{}]
	// unpackF are packed images that are being unpacked.
	unpackF flights[struct{}]

	// commit serialises changes of the table, which write a file. rename serialises what moves content in with what moves
	// content out. Neither is ever needed for reading.
	commit, rename sync.Mutex
	tableSize      int   // of the table on disk, in bytes; guarded by commit
	spare          int64 // of the spare, in bytes; guarded by commit

	// mu guards the maps below and is held for memory only.
	mu     sync.RWMutex
	images map[digest.Digest]*record
	names  map[string]digest.Digest
	layers map[digest.Digest]*layer
	blobs  map[digest.Digest]blobFile
	held   map[digest.Digest]int
	// damaged are layers that a check found so: the next pull, or Repair, replaces them.
	damaged   map[digest.Digest]bool
	snapshots map[string]*snapshotRecord
	leftovers []string // below ingest and trash, see remove
	usage     Usage

	targets targetSets
	reuse   []string // directories below reuse; guarded by mu
}

var _ Store = (*Disk)(nil)

// errClosed is why transfers end when the store closes.
var errClosed = fmt.Errorf("image store is closing: %w", errdefs.ErrUnavailable)

// Open opens or makes the store at cfg.Root. A store that another process has open is refused with
// ErrFailedPrecondition. What a crash left half done is removed; images whose content is damaged or missing are
// dropped from the list (and logged), so that the next pull brings them back.
func Open(cfg Config) (*Disk, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	s := &Disk{
		cfg: cfg, log: cfg.Logger,
		slots:     semaphore.NewWeighted(int64(cfg.ConcurrentLayers)),
		images:    map[digest.Digest]*record{},
		names:     map[string]digest.Digest{},
		layers:    map[digest.Digest]*layer{},
		blobs:     map[digest.Digest]blobFile{},
		held:      map[digest.Digest]int{},
		damaged:   map[digest.Digest]bool{},
		snapshots: map[string]*snapshotRecord{},
		pulls:     flights[*Image]{patience: endPatience},
	}
	if err := s.SetPinned(cfg.Pinned); err != nil {
		return nil, err
	}
	s.life, s.end = context.WithCancelCause(context.Background())
	if err := s.openRoot(); err != nil {
		s.unlock()
		return nil, fmt.Errorf("image store %s: %w", cfg.Root, err)
	}
	return s, nil
}

func (s *Disk) openRoot() error {
	if err := os.MkdirAll(s.cfg.Root, 0o700); err != nil {
		return err
	}
	if err := s.takeLock(); err != nil {
		return err
	}
	if err := s.checkVersion(); err != nil {
		return err
	}
	for _, dir := range []string{"ingest", "trash", "reuse", "snapshots", "blobs/sha256", "layers/sha256"} {
		if err := os.MkdirAll(s.path(dir), 0o700); err != nil {
			return err
		}
	}
	for _, dir := range []string{"ingest", "trash", "reuse"} {
		if err := emptyDir(s.path(dir)); err != nil {
			return fmt.Errorf("clear %s: %w", dir, err)
		}
	}
	spread(s.path("reuse"))
	if err := removeHalfWritten(s.cfg.Root); err != nil {
		return err
	}
	var err error
	if s.driver, s.why, err = snapshot.Open(s.cfg.Snapshotter, s.cfg.Root); err != nil {
		return err
	}
	s.log.Info("image store: snapshotter chosen", "snapshotter", s.driver.Name(), "reason", s.why, "root", s.cfg.Root)
	if s.sync, err = newSyncer(s.cfg.Root); err != nil {
		return err
	}
	s.client = registry.New(s.cfg.Registry)
	if err := s.load(); err != nil {
		return err
	}
	s.checkTargets()
	if err := s.begin(); err != nil {
		return err
	}
	if s.cfg.ImportDir != "" {
		s.running.Go(func() {
			if err := s.ImportDir(s.life, s.cfg.ImportDir); err != nil && s.life.Err() == nil {
				s.log.Error("image store: import directory", "error", err)
			}
		})
	}
	return nil
}

// takeLock refuses a second user of the root. The lock goes with the process, however it ends.
func (s *Disk) takeLock() error {
	f, err := os.OpenFile(s.path("lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		b := make([]byte, 32)
		n, _ := f.Read(b)
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("in use by process %s: stop it or choose another root: %w", b[:n], errdefs.ErrFailedPrecondition)
		}
		return fmt.Errorf("lock: %w", err)
	}
	s.lock = f
	_ = f.Truncate(0)
	_, _ = f.WriteAt([]byte(fmt.Sprint(os.Getpid())), 0)
	return nil
}

// version is that of the layout on disk. A store of a later version is refused.
const version = "1\n"

func (s *Disk) checkVersion() error {
	b, err := os.ReadFile(s.path("version"))
	switch {
	case err == nil && string(b) == version:
		return nil
	case err == nil && len(b) > 0:
		return fmt.Errorf("format version %q, this program knows %q: %w", b, version, errdefs.ErrFailedPrecondition)
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return err
	}
	if err := writeFile(s.path("oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`)); err != nil {
		return err
	}
	return writeFile(s.path("version"), []byte(version))
}

// Close ends transfers, waits for them and for removals, and lets the root go. Snapshots and images stay.
func (s *Disk) Close() error {
	s.closed.Do(func() {
		s.end(errClosed)
		s.running.Wait()
		s.client.Close()
		if err := s.emptyReuse(); err != nil {
			s.log.Warn("image store: directories of removed snapshots are left until the next start", "error", err)
		}
		s.markClosed()
		s.sync.close()
		s.unlock()
	})
	return nil
}

func (s *Disk) unlock() {
	if s.lock != nil {
		_ = s.lock.Close()
	}
}

// Snapshotter is the name of the snapshot driver in use, and why it is.
func (s *Disk) Snapshotter() (name, reason string) { return s.driver.Name(), s.why }

func (s *Disk) path(elem ...string) string {
	return filepath.Join(append([]string{s.cfg.Root}, elem...)...)
}

func (s *Disk) blobPath(d digest.Digest) string {
	return s.path("blobs", d.Algorithm().String(), d.Encoded())
}

func (s *Disk) layerPath(d digest.Digest) string {
	return s.path("layers", d.Algorithm().String(), d.Encoded())
}

// ingestDir makes a directory for something that is being made; the caller removes or renames it.
func (s *Disk) ingestDir() (string, error) {
	dir := s.path("ingest", randomName())
	return dir, os.Mkdir(dir, 0o700)
}

func randomName() string {
	var b [12]byte
	_, _ = rand.Read(b[:]) // crypto/rand.Read never fails since Go 1.24
	return hex.EncodeToString(b[:])
}

// reached marks the steps between which a crash must not matter; tests die there.
var reached = func(string) {}

// step is reached, and a fault point.
func step(name string) error {
	reached(name)
	return faultpoint.Hit(name)
}

// writeFile replaces a file so that a crash leaves the old or the new one.
func writeFile(name string, b []byte) error {
	tmp := name + ".tmp"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = step("image.file.written")
	}
	if err == nil {
		err = os.Rename(tmp, name)
	}
	if err != nil {
		_ = os.Remove(tmp)
		return err
	}
	return syncDir(filepath.Dir(name))
}

// removeHalfWritten removes what writeFile left in dir when it was killed.
func removeHalfWritten(dir string) error {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".tmp") {
			err = errors.Join(err, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	return err
}

func syncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// readCapped reads a file of at most limit bytes.
func readCapped(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s is larger than %d bytes: %w", filepath.Base(name), limit, errdefs.ErrResourceExhausted)
	}
	return b, err
}
