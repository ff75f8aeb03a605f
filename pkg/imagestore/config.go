package imagestore

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/seed-9a14075a/cri-server/pkg/imagestore/binfmt"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore/registry"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore/unpack"
)

// Config is fixed while a store is open.
type Config struct {
	// Root is the store's directory, made if absent. All of it is on one file system.
	Root string
	// Snapshotter is one of snapshot.Names, or "auto" (or "") for the first of these that works on Root.
	Snapshotter string
	// Platform is what images are chosen for; nil is this machine.
	Platform *ocispec.Platform
	// BinfmtDir is where binfmt_misc is mounted; binfmt.Dir if empty. Images for platforms whose programs an interpreter registered
	// there runs are taken where there is none for Platform.
	BinfmtDir string
	// DiscardUnpackedLayers drops a layer's compressed blob once it is unpacked. It halves the disk space; such an image
	// can't be exported.
	DiscardUnpackedLayers bool
	// ConcurrentLayers is how many layers are fetched and unpacked at a time, over all pulls; 0 is max(4, 2 × CPUs).
	ConcurrentLayers int
	// Pinned are patterns of names whose images are pinned; see SetPinned, which changes them later.
	Pinned []string
	// ImportDir is a directory whose archives are imported in the background when the store opens; see Disk.ImportDir.
	ImportDir string
	Limits    Limits
	// Registry has the registries' configuration directory and timeouts.
	Registry registry.Config
	Logger   *slog.Logger
}

// Limits cap what images may be. A zero field takes its default.
type Limits struct {
	// Manifest and Config are bytes of one manifest or index (4 MiB) and of one image config (8 MiB).
	Manifest, Config int64
	// IndexEntries is the number of descriptors of one index (1 024), IndexDepth how deep indexes may nest (3).
	IndexEntries, IndexDepth int
	// Layers is the number of layers of an image (500, what overlayfs stacks), Layer the bytes of a compressed one (64 GiB).
	Layers int
	Layer  int64
	// Archive is the bytes of an imported archive, uncompressed (256 GiB); ArchiveEntries its files (16 384).
	Archive        int64
	ArchiveEntries int
	// Unpack caps the content of one layer.
	Unpack unpack.Limits
}

func (c Config) withDefaults() (Config, error) {
	if c.Root == "" {
		return c, fmt.Errorf("image store: no root directory: %w", errdefs.ErrInvalidArgument)
	}
	root, err := filepath.Abs(c.Root)
	if err != nil {
		return c, err
	}
	c.Root = root
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Registry.Logger == nil {
		c.Registry.Logger = c.Logger
	}
	if c.Platform == nil {
		p := platforms.DefaultSpec()
		c.Platform = &p
	}
	if c.BinfmtDir == "" {
		c.BinfmtDir = binfmt.Dir
	}
	if c.ConcurrentLayers <= 0 {
		c.ConcurrentLayers = max(4, 2*runtime.NumCPU())
	}
	l := &c.Limits
	def(&l.Manifest, 4<<20)
	def(&l.Config, 8<<20)
	def(&l.IndexEntries, 1024)
	def(&l.IndexDepth, 3)
	def(&l.Layers, 500)
	def(&l.Layer, 64<<30)
	def(&l.Archive, 256<<30)
	def(&l.ArchiveEntries, 16<<10)
	u := unpack.DefaultLimits()
	def(&l.Unpack.Entries, u.Entries)
	def(&l.Unpack.Bytes, u.Bytes)
	def(&l.Unpack.PathLength, u.PathLength)
	def(&l.Unpack.NameLength, u.NameLength)
	def(&l.Unpack.Depth, u.Depth)
	def(&l.Unpack.XattrBytes, u.XattrBytes)
	return c, nil
}

func def[T int | int64](p *T, v T) {
	if *p == 0 {
		*p = v
	}
}
