package seccomp

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/singleflight"
)

// maxFilters bounds the cache. A node uses a handful: the default profile for each set of capabilities, and its own.
const maxFilters = 128

var cache = struct {
	sync.Mutex
	filters map[[sha256.Size]byte][]byte
	flight  singleflight.Group
}{filters: map[[sha256.Size]byte][]byte{}}

// Compile returns the filter of a profile: an array of struct sock_filter in native byte order, for seccomp(2)
// SECCOMP_SET_MODE_FILTER. Whoever loads it passes the profile's Flags on. A nil profile has no filter. The result is
// shared: don't change it. Profiles with a listener (SCMP_ACT_NOTIFY) are refused with ErrNotImplemented.
func Compile(p *specs.LinuxSeccomp) ([]byte, error) {
	if p == nil {
		return nil, nil
	}
	if f, ok := defaults.filter(p); ok {
		return f, nil
	}
	f, err := compileOnce(p)
	if err == nil {
		defaults.compiled(p, f)
	}
	return f, err
}

// compileOnce finds a filter by what is in its profile.
func compileOnce(p *specs.LinuxSeccomp) ([]byte, error) {
	b, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("seccomp profile: %w", err)
	}
	key := sha256.Sum256(b)
	if f, ok := cached(key); ok {
		return f, nil
	}
	v, err, _ := cache.flight.Do(string(key[:]), func() (any, error) {
		if f, ok := cached(key); ok {
			return f, nil
		}
		if err := check(p); err != nil {
			return nil, err
		}
		f, err := compile(p)
		if err != nil {
			return nil, err
		}
		cache.Lock()
		defer cache.Unlock()
		for k := range cache.filters {
			if len(cache.filters) < maxFilters {
				break
			}
			delete(cache.filters, k) // any: a victim costs one compilation
		}
		cache.filters[key] = f
		return f, nil
	})
	if err != nil {
		return nil, fmt.Errorf("compile seccomp profile: %w", err)
	}
	return v.([]byte), nil
}

func cached(key [sha256.Size]byte) ([]byte, bool) {
	cache.Lock()
	defer cache.Unlock()
	f, ok := cache.filters[key]
	return f, ok
}

// shared are the profiles that RuntimeDefault has made, with their filters. Nobody changes them, so they are known by their
// address: to make one, and to put it in writing so as to find its filter, are most of what a container's profile costs.
type shared struct {
	sync.Mutex
	byCaps  map[string]*specs.LinuxSeccomp
	filters map[*specs.LinuxSeccomp][]byte // nil: not compiled yet
}

var defaults = shared{byCaps: map[string]*specs.LinuxSeccomp{}, filters: map[*specs.LinuxSeccomp][]byte{}}

// of is the profile for caps, which make makes if need be.
func (d *shared) of(caps string, make func() (*specs.LinuxSeccomp, error)) (*specs.LinuxSeccomp, error) {
	d.Lock()
	defer d.Unlock()
	if p := d.byCaps[caps]; p != nil {
		return p, nil
	}
	p, err := make()
	if err != nil {
		return nil, err
	}
	for k, old := range d.byCaps {
		if len(d.byCaps) < maxFilters {
			break
		}
		delete(d.byCaps, k) // any: it is made again
		delete(d.filters, old)
	}
	d.byCaps[caps], d.filters[p] = p, nil
	return p, nil
}

func (d *shared) filter(p *specs.LinuxSeccomp) ([]byte, bool) {
	d.Lock()
	defer d.Unlock()
	f := d.filters[p]
	return f, f != nil
}

// compiled keeps the filter of p, if that is one of them.
func (d *shared) compiled(p *specs.LinuxSeccomp, f []byte) {
	d.Lock()
	defer d.Unlock()
	if _, ok := d.filters[p]; ok {
		d.filters[p] = f
	}
}
