package imagestore

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/rootfs"
)

// Target is a mount point of a container.
type Target struct {
	// Path is absolute and clean.
	Path string
	// Dir: a directory, else an empty file.
	Dir bool
}

// targetSets are the layers of mount points. A mount point that an image lacks is made in the container's writable layer,
// which takes a copy of its directory, and an inode for each, with every container anew. A set has them once for all:
// targets/NAME holds nothing but the mount points, NAME is the digest of what it holds, and it never changes. It is laid
// below the image's layers, so that all that the image has there (a file, a link, a whiteout, an opaque directory) hides it.
//
// Nothing is synced: what a power cut left of a set doesn't fit its name, and goes when the store opens.
type targetSets struct {
	mu sync.Mutex // held while one is made
	// bad says that none can be made, so that it is logged once.
	bad bool
}

// maxTargets is how many mount points a set may have.
const maxTargets = 32

// MountTargets implements Store.
func (s *Disk) MountTargets(r rootfs.Rootfs, targets []Target) rootfs.Rootfs {
	// Elsewhere layers are no directories to be stacked, or each of them costs a mount.
	if s.driver.Name() != "overlay" || r.Upper == "" || len(r.Lower) >= maxTargetsBelow || len(targets) == 0 {
		return r
	}
	dir, err := s.targetSet(targets)
	if err != nil {
		s.targets.mu.Lock()
		if !s.targets.bad {
			s.log.Warn("image store: mount points are made in each container", "error", err)
		}
		s.targets.bad = true
		s.targets.mu.Unlock()
		return r
	}
	r.Lower = append(slices.Clone(r.Lower), dir)
	return r
}

// maxTargetsBelow is how many layers an image has at most to get one more: far from what any kernel's overlayfs stacks.
const maxTargetsBelow = 100

// targetSet returns the directory of a set, which it makes if it is not there.
func (s *Disk) targetSet(targets []Target) (string, error) {
	text, err := describeTargets(targets)
	if err != nil {
		return "", err
	}
	dir := s.path("targets", targetName(text))
	if isDir(dir) {
		return dir, nil
	}
	s.targets.mu.Lock()
	defer s.targets.mu.Unlock()
	if isDir(dir) {
		return dir, nil
	}
	tmp, err := s.ingestDir()
	if err != nil {
		return "", err
	}
	if err = makeTargets(tmp, targets); err == nil {
		reached("targets.made") // no fault point: it is passed once only
		err = os.Mkdir(s.path("targets"), 0o700)
		if err == nil || errors.Is(err, os.ErrExist) {
			err = os.Rename(tmp, dir)
		}
	}
	if err != nil {
		_ = s.remove(tmp)
		return "", fmt.Errorf("mount points: %w", err)
	}
	s.targets.bad = false
	return dir, nil
}

func isDir(name string) bool {
	var st unix.Stat_t
	return unix.Lstat(name, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
}

// describeTargets lists a set's mount points in one way only. None may lie in another.
func describeTargets(targets []Target) (string, error) {
	if len(targets) > maxTargets {
		return "", fmt.Errorf("%d mount points: %w", len(targets), errdefs.ErrInvalidArgument)
	}
	lines := make([]string, 0, len(targets))
	for _, t := range targets {
		if t.Path == "/" || !path.IsAbs(t.Path) || path.Clean(t.Path) != t.Path || strings.ContainsAny(t.Path, "\n\x00") {
			return "", fmt.Errorf("mount point %q: %w", t.Path, errdefs.ErrInvalidArgument)
		}
		for _, other := range targets {
			if other != t && strings.HasPrefix(other.Path+"/", t.Path+"/") {
				return "", fmt.Errorf("mount points %q and %q: %w", t.Path, other.Path, errdefs.ErrInvalidArgument)
			}
		}
		lines = append(lines, describeTarget(t.Path, t.Dir))
	}
	return sortedLines(lines), nil
}

func describeTarget(p string, dir bool) string {
	if dir {
		return p + "/\n"
	}
	return p + "\n"
}

func sortedLines(lines []string) string {
	slices.Sort(lines)
	return strings.Join(slices.Compact(lines), "")
}

func targetName(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// makeTargets fills the empty directory dir with what an engine would make in a container.
func makeTargets(dir string, targets []Target) error {
	mkdir := func(name string) error {
		if err := os.Mkdir(name, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
		return os.Chmod(name, 0o755) // whatever the umask
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	for _, t := range targets {
		name := dir
		parts := strings.Split(t.Path[1:], "/")
		for i, part := range parts {
			name = filepath.Join(name, part)
			if i < len(parts)-1 || t.Dir {
				if err := mkdir(name); err != nil {
					return err
				}
				continue
			}
			if err := unix.Mknod(name, unix.S_IFREG|0o644, 0); err != nil {
				return &os.PathError{Op: "mknod", Path: name, Err: err}
			}
			if err := os.Chmod(name, 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

// readTargets describes the set in dir, as describeTargets does.
func readTargets(dir string) (string, error) {
	var lines []string
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(name, &st); err != nil {
			return err
		}
		switch {
		case len(lines) > 2*maxTargets:
			return fmt.Errorf("more than was put there: %w", errdefs.ErrDataLoss)
		case st.Uid != uint32(os.Geteuid()) || st.Mode != unix.S_IFDIR|0o755 && (st.Mode != unix.S_IFREG|0o644 || st.Size != 0 || st.Nlink != 1):
			return fmt.Errorf("%s is no mount point: %w", name, errdefs.ErrDataLoss)
		case name == dir:
			return nil
		}
		p, below := "/"+name[len(dir)+1:], path.Dir(name[len(dir):])
		// A directory on the way to another mount point is none.
		if at := describeTarget(below, true); len(lines) > 0 && lines[len(lines)-1] == at {
			lines = lines[:len(lines)-1]
		}
		lines = append(lines, describeTarget(p, d.IsDir()))
		return nil
	})
	return sortedLines(lines), err
}

// checkTargets removes what is not a whole set. The next container that needs it has it made anew.
func (s *Disk) checkTargets() {
	entries, err := os.ReadDir(s.path("targets"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		s.log.Warn("image store: layers of mount points can't be checked", "error", err)
	}
	for _, e := range entries {
		dir := s.path("targets", e.Name())
		text, err := readTargets(dir)
		if err == nil && text != "" && targetName(text) == e.Name() {
			continue
		}
		s.log.Warn("image store: a layer of mount points is damaged; the next container has it made anew", "path", dir, "error", err)
		trash := s.path("trash", randomName())
		if err = os.Rename(dir, trash); err == nil {
			err = s.remove(trash)
		}
		if err != nil {
			s.log.Warn("image store: a damaged layer of mount points stays", "path", dir, "error", err)
		}
	}
}
