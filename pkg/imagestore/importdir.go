package imagestore

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
)

// imported is what is known of an archive in the import directory; imported.json is a map of these by file name.
type imported struct {
	Size  int64           `json:"size"`
	Time  time.Time       `json:"time"`
	Image []digest.Digest `json:"images"`
}

// archiveNames are the endings of files that ImportDir imports; how they are compressed their first bytes say.
var archiveNames = []string{".tar", ".tar.gz", ".tgz", ".tar.zst", ".tar.zstd", ".tzst"}

// ImportDir imports the archives in dir, in the order of their names. One that was imported before and hasn't changed since
// is left alone while the store still has its images. An archive that can't be imported is logged and keeps none of the
// others back. A directory that isn't there is empty.
func (s *Disk) ImportDir(ctx context.Context, dir string) error {
	s.importing.Lock()
	defer s.importing.Unlock()
	entries, err := os.ReadDir(dir)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("import directory: %w", err)
	}
	known := map[string]imported{}
	if b, err := readCapped(s.path("imported.json"), maxTable); err == nil {
		_ = json.Unmarshal(b, &known) // what can't be read is imported again
	}
	now := map[string]imported{}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		name := filepath.Join(dir, e.Name())
		st, err := os.Stat(name)
		if err != nil || !st.Mode().IsRegular() || !isArchive(e.Name()) {
			continue
		}
		done := imported{Size: st.Size(), Time: st.ModTime()}
		if k := known[name]; k.Size == done.Size && k.Time.Equal(done.Time) && s.haveImages(k.Image) {
			now[name] = k
			continue
		}
		if done.Image, err = s.importFile(ctx, name); err != nil {
			s.log.Error("image store: archive of the import directory not imported", "file", name, "error", err)
			continue
		}
		s.log.Info("image store: archive of the import directory imported", "file", name, "images", len(done.Image))
		now[name] = done
	}
	return writeFileJSON(s.path("imported.json"), now)
}

func isArchive(name string) bool {
	for _, end := range archiveNames {
		if strings.HasSuffix(name, end) && !strings.HasPrefix(name, ".") {
			return true
		}
	}
	return false
}

func (s *Disk) importFile(ctx context.Context, name string) ([]digest.Digest, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	list, err := s.Import(ctx, f)
	var ids []digest.Digest
	for _, i := range list {
		ids = append(ids, digest.Digest(i.ID))
	}
	return ids, err
}

func (s *Disk) haveImages(ids []digest.Digest) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, id := range ids {
		if _, ok := s.images[id]; !ok {
			return false
		}
	}
	return len(ids) > 0
}
