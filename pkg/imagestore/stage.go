package imagestore

import (
	"context"
	"fmt"
	"sync"

	"github.com/opencontainers/go-digest"
)

// stage tells where a pull is: one thing, or some layers at a time. Its methods do nothing on nil, so that what a pull has in
// common with an import need not ask. Safe for concurrent use.
type stage struct {
	mu     sync.Mutex
	name   string
	layers []*layerStage // those that are not done, in the order they were begun
}

type layerStage struct {
	of     *stage
	number string // "layer 2 of 5, sha256:…"
	name   string
	// received of size bytes; only what is fetched says so.
	received, size int64
}

type stageKey struct{}

func stageOf(ctx context.Context) *stage {
	s, _ := ctx.Value(stageKey{}).(*stage)
	return s
}

// at begins a stage of the whole.
func (s *stage) at(name string) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.name = name
}

// layer begins a layer; done ends it.
func (s *stage) layer(n, of int, d digest.Digest) (l *layerStage) {
	if s == nil {
		return nil
	}
	l = &layerStage{of: s, number: fmt.Sprintf("layer %d of %d, %s", n, of, d)}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.layers = append(s.layers, l)
	return l
}

func (l *layerStage) done() {
	if l == nil {
		return
	}
	l.of.mu.Lock()
	defer l.of.mu.Unlock()
	for i, other := range l.of.layers {
		if other == l {
			l.of.layers = append(l.of.layers[:i], l.of.layers[i+1:]...)
			return
		}
	}
}

// at begins a stage of the layer.
func (l *layerStage) at(name string) {
	if l == nil {
		return
	}
	l.of.mu.Lock()
	defer l.of.mu.Unlock()
	l.name, l.received, l.size = name, 0, 0
}

// fetching begins the stage in which size bytes are fetched, and unpacked as they come.
func (l *layerStage) fetching(size int64) {
	l.at("fetch and unpack")
	l.add(0, size)
}

// add counts received bytes.
func (l *layerStage) add(n, size int64) {
	if l == nil {
		return
	}
	l.of.mu.Lock()
	defer l.of.mu.Unlock()
	l.received, l.size = l.received+n, size
}

type layerStageKey struct{}

func layerStageOf(ctx context.Context) *layerStage {
	l, _ := ctx.Value(layerStageKey{}).(*layerStage)
	return l
}

// String is the stage: of layers the first that is not done, and how many others there are.
func (s *stage) String() string {
	if s == nil {
		return ""
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.layers) == 0 {
		return s.name
	}
	l := s.layers[0]
	text := l.number + ": " + l.name
	if l.size > 0 {
		text += fmt.Sprintf(", %d of %d bytes", l.received, l.size)
	}
	if n := len(s.layers) - 1; n > 0 {
		text += fmt.Sprintf(" (and %d more)", n)
	}
	return text
}
