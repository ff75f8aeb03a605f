package native

import (
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// sharedSpecs is how many specs, and sets of capabilities, are held for others to share.
const sharedSpecs = 16

// shared lets containers share what is kept of their specs, which must not be changed from then on: that of all pause
// containers is the same, and so are the capabilities of most others, each some kilobytes. What was asked for lately is held,
// whether a container has it still or not. The zero value is ready.
type shared struct {
	mu    sync.Mutex
	specs recent[*specs.Spec]
	caps  recent[*specs.LinuxCapabilities]
	texts map[*specs.Spec][]byte // the JSON of those in specs
}

// json is the JSON of a spec that share has returned.
func (s *shared) json(spec *specs.Spec) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if text := s.texts[spec]; text != nil {
		return text, nil
	}
	text, err := json.Marshal(spec)
	if err != nil || !slices.Contains(s.specs.list, spec) {
		return text, err
	}
	if s.texts == nil {
		s.texts = map[*specs.Spec][]byte{}
	}
	maps.DeleteFunc(s.texts, func(other *specs.Spec, _ []byte) bool { return !slices.Contains(s.specs.list, other) })
	s.texts[spec] = text
	return text, nil
}

func (s *shared) share(spec *specs.Spec) *specs.Spec {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := spec.Process; p != nil && p.Capabilities != nil {
		p.Capabilities = s.caps.share(p.Capabilities)
	}
	if hasHooks(spec) { // of no two containers the same
		return spec
	}
	return s.specs.share(spec)
}

// recent holds what was asked for last, the latest first.
type recent[T any] struct{ list []T }

func (r *recent[T]) share(v T) T {
	i := 0
	for i < len(r.list) && !reflect.DeepEqual(r.list[i], v) {
		i++
	}
	if i < len(r.list) {
		v = r.list[i]
	} else if i < sharedSpecs {
		r.list = append(r.list, v)
	} else {
		i--
	}
	copy(r.list[1:i+1], r.list[:i])
	r.list[0] = v
	return v
}
