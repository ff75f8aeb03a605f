package imagestore

import (
	"context"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
)

// Progress watches one pull. The zero value is ready; give it to WithProgress. Safe for concurrent use.
type Progress struct {
	mu     sync.Mutex
	layers map[digest.Digest]*LayerProgress
}

// LayerProgress is how far one layer is.
type LayerProgress struct {
	Digest digest.Digest `json:"digest"`
	// Received and Size are bytes of the compressed layer.
	Received int64 `json:"received"`
	Size     int64 `json:"size"`
	// Done: it is received, checked and unpacked. Present: it was there before.
	Done    bool `json:"done,omitempty"`
	Present bool `json:"present,omitempty"`
}

type progressKey struct{}

// WithProgress makes a Pull under the context report to p. A pull that joins another one's transfer sees the layers'
// completion only.
func WithProgress(ctx context.Context, p *Progress) context.Context {
	return context.WithValue(ctx, progressKey{}, p)
}

// progressOf returns nil, which takes all calls, where nobody watches.
func progressOf(ctx context.Context) *Progress {
	p, _ := ctx.Value(progressKey{}).(*Progress)
	return p
}

// Layers are the layers so far known, sorted by digest.
func (p *Progress) Layers() []LayerProgress {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]LayerProgress, 0, len(p.layers))
	for _, l := range p.layers {
		out = append(out, *l)
	}
	slices.SortFunc(out, func(a, b LayerProgress) int { return strings.Compare(string(a.Digest), string(b.Digest)) })
	return out
}

func (p *Progress) layer(d digest.Digest, size int64, change func(*LayerProgress)) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.layers[d]
	if l == nil {
		l = &LayerProgress{Digest: d, Size: size}
		if p.layers == nil {
			p.layers = map[digest.Digest]*LayerProgress{}
		}
		p.layers[d] = l
	}
	change(l)
}
