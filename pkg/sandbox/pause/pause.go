// Package pause is the program that holds a pod's namespaces, as a static binary for this architecture. Its source is
// cmd/pause; no image is needed for it.
package pause

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"

	"github.com/seed-9a14075a/cri-server/pkg/rootfs"
)

// Path is where the program stands in the root file system that Install makes.
const Path = "/pause"

// Binary returns the program: a static ELF file of less than 1 KiB. The caller must not change it.
func Binary() []byte { return binary }

// Install makes dir a root file system that holds pause and the mount points that every container needs. It is shared
// by all sandboxes and must be mounted read-only. Idempotent; a running pause keeps the file that it was started from.
func Install(dir string) (rootfs.Rootfs, error) {
	for _, name := range []string{"", "dev", "proc", "sys", "etc"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			return rootfs.Rootfs{}, fmt.Errorf("pause: %w", err)
		}
	}
	name := filepath.Join(dir, Path)
	if b, err := os.ReadFile(name); err == nil && bytes.Equal(b, binary) {
		return rootfs.Rootfs{Path: dir}, nil
	}
	if err := renameio.WriteFile(name, binary, 0o555); err != nil {
		return rootfs.Rootfs{}, fmt.Errorf("pause: %w", err)
	}
	return rootfs.Rootfs{Path: dir}, nil
}
