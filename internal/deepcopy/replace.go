package deepcopy

import (
	"context"
	"sync"
)

// Set is a set of pictures at rest, by id: values that nobody changes, and which are replaced as a whole.
type Set[T any] struct {
	IDs  []string
	Lock func(ctx context.Context, id string) (unlock func(), err error) // one change of a picture at a time
	Mu   *sync.RWMutex                                                   // of ByID
	ByID map[string]*T
}

// Replace puts copies in the place of the pictures. What stays of an operation lies among what it has thrown away, in pages that
// the collector can then not give back: after a few hundred pods more than half of them are holes. The copies lie side by
// side, and share their strings. Nobody can tell a copy from what it is of. It ends with ctx.
func Replace[T any](ctx context.Context, s Set[T]) {
	var copier Copier
	for _, id := range s.IDs {
		if ctx.Err() != nil {
			return
		}
		s.replace(ctx, &copier, id)
	}
}

func (s Set[T]) replace(ctx context.Context, copier *Copier, id string) {
	unlock, err := s.Lock(ctx, id)
	if err != nil {
		return
	}
	defer unlock()
	s.Mu.RLock()
	old := s.ByID[id]
	s.Mu.RUnlock()
	if old == nil {
		return
	}
	next, err := Of(copier, old)
	if err != nil {
		return // the old one serves
	}
	s.Mu.Lock()
	defer s.Mu.Unlock()
	if s.ByID[id] == old {
		s.ByID[id] = next
	}
}
