// Package imagestore keeps images: it pulls them from registries, unpacks their layers, and makes snapshots of them for
// containers.
//
// On disk below Config.Root (relocatable: no absolute path is stored): an OCI layout's blobs by digest, one directory per
// unpacked layer (layers/<diffID>), one directory per snapshot (a container's writable layer), and the table of images.
// Nothing is listed before its bytes are on disk. cri-server is its only user at a time (a lock file).
//
// Everything that comes from a registry or an archive is hostile: sizes, counts, depths and paths are capped, and
// unpacking never leaves the layer's directory.
package imagestore

import (
	"context"
	"io"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/seed-9a14075a/cri-server/pkg/rootfs"
)

// Auth are the credentials of one pull, as in the CRI's AuthConfig. They are never logged.
type Auth struct {
	Username, Password, Auth, ServerAddress, IdentityToken, RegistryToken string
}

// Image is one image of the store. What it points to is shared: callers don't change it.
type Image struct {
	// ID is the digest of the image's config, "sha256:…": Image.id, Container.image_id and PullImageResponse.image_ref.
	ID string
	// RepoTags and RepoDigests are full references ("registry.k8s.io/pause:3.10", "…@sha256:…"), sorted.
	RepoTags, RepoDigests []string
	// Size in bytes as the CRI wants it: compressed layers + config + manifest; never 0.
	Size uint64
	// Pinned images are never garbage collected.
	Pinned bool
	// Manifest is the digest of the platform's manifest.
	Manifest digest.Digest
	// Config is the image's own configuration.
	Config ocispec.Image
	// PulledAt is when the image was stored.
	PulledAt time.Time
}

// Store is implemented by this package's type; the interface is what the CRI edge and the runtime need of it. Safe for
// concurrent use; the reads answer from memory.
type Store interface {
	// Pull fetches ref (tag or digest; a name without registry is docker.io's) for this node's platform, unpacks it and
	// names it. It always asks the registry, so that credentials are proven. Concurrent pulls of one digest share
	// one transfer. ErrNotFound, ErrPermissionDenied (bad credentials), ErrUnavailable (registry not reachable or
	// stalled), ErrDataLoss-like errdefs kinds carry the stage.
	Pull(ctx context.Context, ref string, auth *Auth) (*Image, error)

	// Get finds an image by ID (with or without "sha256:"), unambiguous ID prefix of 12 or more digits, tag or digest
	// reference. ErrNotFound.
	Get(ref string) (*Image, error)
	// List returns all images, ordered by ID.
	List() []*Image
	// Remove deletes the image with all its names (by ID), or one name of it (by tag, when others remain; with the last
	// tag of a repository the image's digest names of that repository go too). ErrNotFound is not returned: idempotent.
	// Layers in use by snapshots stay until those go; else the disk space is free when it returns.
	Remove(ctx context.Context, ref string) error
	// Tag gives an image a further name.
	Tag(ctx context.Context, ref, name string) error
	// Pin sets or clears Pinned.
	Pin(ctx context.Context, ref string, pinned bool) error
	// SetPinned replaces the patterns of names whose images are pinned besides; see Disk.SetPinned.
	SetPinned(patterns []string) error
	// Snapshotter is the name of the snapshot driver in use, and why it is.
	Snapshotter() (name, reason string)
	// Usage is the bytes and inodes of blobs and unpacked layers, as allocated on disk, from memory. What containers
	// wrote is in SnapshotUsage.
	Usage() Usage

	// Import reads an OCI or docker archive (plain or compressed) and returns the images it held. Blobs of other platforms
	// may be missing.
	Import(ctx context.Context, r io.Reader) ([]*Image, error)
	// ImportPacked leaves the layers packed until the first container of the image is made.
	ImportPacked(ctx context.Context, r io.Reader) ([]*Image, error)
	// Export writes an OCI archive (with docker's manifest.json beside it) of the named images.
	Export(ctx context.Context, w io.Writer, refs ...string) error

	// Push uploads the image named by a tag to that name's registry. ErrFailedPrecondition where its blobs were discarded.
	Push(ctx context.Context, ref string, auth *Auth) error
	// Verify compares what the store holds, or what the named images need, with digests and manifests; quick reads no
	// content. Repair also makes damaged things whole, from good blobs or by pulling; images that it can't are dropped.
	Verify(ctx context.Context, quick bool, refs ...string) (*Report, error)
	Repair(ctx context.Context, quick bool, refs ...string) (*Report, error)
	// Prune removes images without a tag, or with all any, that no snapshot uses and that are not pinned.
	Prune(ctx context.Context, all bool) (Pruned, error)
	// DiskUsage tells what each image takes, from memory.
	DiskUsage() []ImageUsage

	// Snapshot makes the writable layer `key` (a container id) of an image and returns the root file system to mount.
	// Idempotent for the same key and image. The image can't be lost while snapshots of it exist.
	Snapshot(ctx context.Context, key, imageID string) (rootfs.Rootfs, error)
	// View is the image's root file system, read-only. It doesn't keep the image from being removed, a Snapshot does.
	View(imageID string) (rootfs.Rootfs, error)
	// MountTargets returns r, a Snapshot, with mount points that images often lack in a layer below the image's, shared by all
	// containers that have the same; r as it is where that is not possible. The caller mounts something over each of them.
	MountTargets(r rootfs.Rootfs, targets []Target) rootfs.Rootfs
	// SnapshotUsage is the bytes and inodes of the writable layer.
	SnapshotUsage(key string) (Usage, error)
	// RemoveSnapshot is idempotent; the disk space may follow later.
	RemoveSnapshot(ctx context.Context, key string) error
	// Snapshots lists the keys, for garbage collection.
	Snapshots() []string
	// Garbage lists the layers and blobs that nothing needs, as failed pulls leave them for the next try, by their paths
	// below the root; Sweep removes them.
	Garbage() []string
	Sweep() error

	Close() error
}

// Usage is disk usage. Mountpoint is a real path on the file system that holds it.
type Usage struct {
	Mountpoint    string
	Bytes, Inodes uint64
	Time          time.Time
}
