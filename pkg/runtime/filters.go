package runtime

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/google/renameio/v2"
)

// filters keeps compiled seccomp filters by their digest, in memory and in a directory that lives as long as the
// containers do: an exec gets the very filter its container was started with, also after a restart of cri-server and
// after the profile's file has changed.
type filters struct {
	dir string

	mu    sync.Mutex
	known map[string][]byte
}

func newFilters(dir string) (*filters, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return &filters{dir: dir, known: map[string][]byte{}}, nil
}

// put keeps a filter and returns its name.
func (f *filters) put(bpf []byte) (string, error) {
	sum := sha256.Sum256(bpf)
	name := hex.EncodeToString(sum[:])
	f.mu.Lock()
	_, ok := f.known[name]
	f.mu.Unlock()
	if ok {
		return name, nil
	}
	if err := renameio.WriteFile(filepath.Join(f.dir, name), bpf, 0o600); err != nil {
		return "", fmt.Errorf("keep seccomp filter: %w", err)
	}
	f.mu.Lock()
	f.known[name] = bpf
	f.mu.Unlock()
	return name, nil
}

// get returns the filter of that name; nil for "".
func (f *filters) get(name string) ([]byte, error) {
	if name == "" {
		return nil, nil
	}
	f.mu.Lock()
	bpf, ok := f.known[name]
	f.mu.Unlock()
	if ok {
		return bpf, nil
	}
	bpf, err := os.ReadFile(filepath.Join(f.dir, filepath.Base(name)))
	if err != nil {
		return nil, fmt.Errorf("seccomp filter of the container: %w", err)
	}
	if sum := sha256.Sum256(bpf); hex.EncodeToString(sum[:]) != name {
		return nil, fmt.Errorf("seccomp filter %s is damaged", name)
	}
	f.mu.Lock()
	f.known[name] = bpf
	f.mu.Unlock()
	return bpf, nil
}
