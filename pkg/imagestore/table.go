package imagestore

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// record is an image. It is never changed once it is in the map: a change puts a new one in its place.
type record struct {
	ID       digest.Digest      `json:"id"`
	Manifest ocispec.Descriptor `json:"manifest"`
	// Tags and Digests are full references.
	Tags     []string  `json:"tags,omitempty"`
	Digests  []string  `json:"digests,omitempty"`
	Pinned   bool      `json:"pinned,omitempty"`
	PulledAt time.Time `json:"pulledAt"`
	// Packed: layers that are not unpacked are there as blobs.
	Packed bool `json:"packed,omitempty"`

	// These are read from the blobs.
	config   ocispec.Image
	manifest ocispec.Manifest
	size     uint64
}

// table is images.json.
type table struct {
	Version int       `json:"version"`
	Images  []*record `json:"images"`
}

const (
	tableVersion = 1
	maxTable     = 64 << 20
)

func (r *record) image() *Image {
	return &Image{
		ID: r.ID.String(), RepoTags: slices.Clone(r.Tags), RepoDigests: slices.Clone(r.Digests), Size: r.size,
		Pinned: r.Pinned, Manifest: r.Manifest.Digest, Config: r.config, PulledAt: r.PulledAt,
	}
}

// diffIDs are the layers, bottom first.
func (r *record) diffIDs() []digest.Digest { return r.config.RootFS.DiffIDs }

// content are the blobs that the image needs or may have.
func (r *record) content() []digest.Digest {
	out := []digest.Digest{r.Manifest.Digest, r.manifest.Config.Digest}
	for _, l := range r.manifest.Layers {
		out = append(out, l.Digest)
	}
	return out
}

func (r *record) clone() *record {
	c := *r
	c.Tags, c.Digests = slices.Clone(r.Tags), slices.Clone(r.Digests)
	return &c
}

func (r *record) setSize() {
	n := r.Manifest.Size + r.manifest.Config.Size
	for _, l := range r.manifest.Layers {
		n += l.Size
	}
	r.size = max(1, uint64(n))
}

// update changes the table: change gets a private copy of the map to work on. The new table is on disk before anybody
// sees it. Nothing else may hold commit.
func (s *Disk) update(change func(map[digest.Digest]*record) error) error {
	s.commit.Lock()
	defer s.commit.Unlock()
	s.mu.RLock()
	images := make(map[digest.Digest]*record, len(s.images)+1)
	for id, r := range s.images {
		images[id] = r
	}
	s.mu.RUnlock()
	if err := change(images); err != nil {
		return err
	}
	if err := step("image.table.change"); err != nil {
		return err
	}
	if err := s.writeTable(images); err != nil {
		return fmt.Errorf("write image table: %w", err)
	}
	if err := step("image.table.written"); err != nil {
		return fmt.Errorf("write image table: %w", err)
	}
	s.mu.Lock()
	s.images, s.names = images, nameIndex(images)
	s.mu.Unlock()
	return nil
}

func (s *Disk) writeTable(images map[digest.Digest]*record) error {
	t := table{Version: tableVersion}
	for _, r := range images {
		t.Images = append(t.Images, r)
	}
	slices.SortFunc(t.Images, func(a, b *record) int { return strings.Compare(string(a.ID), string(b.ID)) })
	b, err := json.MarshalIndent(t, "", " ")
	if err != nil {
		return err
	}
	if len(b) <= s.tableSize { // images or names go
		err = s.writeSparing(s.path("images.json"), b)
	} else {
		err = writeFile(s.path("images.json"), b)
	}
	if err == nil {
		s.tableSize = len(b)
		s.restock(len(b))
	}
	return err
}

func nameIndex(images map[digest.Digest]*record) map[string]digest.Digest {
	names := map[string]digest.Digest{}
	for id, r := range images {
		for _, n := range r.Tags {
			names[n] = id
		}
		for _, n := range r.Digests {
			names[n] = id
		}
	}
	return names
}

// addName gives an image a name, which other images lose.
func addName(images map[digest.Digest]*record, id digest.Digest, name string) {
	r := images[id].clone()
	_, isDigest := mustParse(name).(reference.Digested)
	for other, o := range images {
		if other != id && (slices.Contains(o.Tags, name) || slices.Contains(o.Digests, name)) {
			c := o.clone()
			c.dropName(name)
			images[other] = c
		}
	}
	list := &r.Tags
	if isDigest {
		list = &r.Digests
	}
	if !slices.Contains(*list, name) {
		*list = append(*list, name)
		slices.Sort(*list)
	}
	images[id] = r
}

func (r *record) dropName(name string) {
	is := func(n string) bool { return n == name }
	r.Tags = slices.DeleteFunc(r.Tags, is)
	r.Digests = slices.DeleteFunc(r.Digests, is)
}

// mustParse reads a name that came out of parseName.
func mustParse(name string) reference.Named {
	n, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return nil
	}
	return n
}

// readTable reads images.json. A table that can't be read is put aside: its images are pulled again.
func (s *Disk) readTable() ([]*record, error) {
	b, err := readCapped(s.path("images.json"), maxTable)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("image table: %w", err)
	}
	s.tableSize = len(b)
	var t table
	if err := json.Unmarshal(b, &t); err != nil {
		aside := fmt.Sprintf("%s.damaged-%d", s.path("images.json"), time.Now().Unix())
		s.log.Error("image store: the table of images is damaged; images will be pulled again", "error", err, "kept", aside)
		return nil, os.Rename(s.path("images.json"), aside)
	}
	if t.Version > tableVersion {
		return nil, fmt.Errorf("image table version %d, this program knows %d: %w", t.Version, tableVersion, errdefs.ErrFailedPrecondition)
	}
	return t.Images, nil
}
