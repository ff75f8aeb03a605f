package operation

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// Locks are mutual exclusions by key, for operations of different names on one object (stop and start of a
// container). The zero value is ready; waiters are served in the order they came. Not re-entrant.
type Locks struct {
	mu   sync.Mutex
	keys map[string]*keyLock
}

type keyLock struct {
	slot  chan struct{} // holds one token while the key is locked
	users int           // holder and waiters

	since  time.Time
	holder *Op // nil when locked outside an operation
}

// Lock waits until key is free or ctx ends; then the error, of ctx's kind, says who holds the key. unlock must be called
// once; further calls do nothing.
func (l *Locks) Lock(ctx context.Context, key string) (unlock func(), err error) {
	l.mu.Lock()
	if l.keys == nil {
		l.keys = map[string]*keyLock{}
	}
	k, ok := l.keys[key]
	if !ok {
		k = &keyLock{slot: make(chan struct{}, 1)}
		l.keys[key] = k
	}
	k.users++
	l.mu.Unlock()

	select {
	case k.slot <- struct{}{}:
	default:
		select {
		case k.slot <- struct{}{}:
		case <-ctx.Done():
			return nil, l.giveUp(ctx, key, k)
		}
	}
	l.mu.Lock()
	k.holder, k.since = FromContext(ctx), time.Now()
	l.mu.Unlock()
	return sync.OnceFunc(func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		k.holder = nil
		<-k.slot
		l.drop(key, k)
	}), nil
}

func (l *Locks) giveUp(ctx context.Context, key string, k *keyLock) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	defer l.drop(key, k)
	holder := "another call"
	if k.holder != nil {
		stage, _ := k.holder.Current()
		holder = fmt.Sprintf("%q at stage %q", k.holder.Key(), stage)
	}
	return fmt.Errorf("%s is busy: %s holds it for %v: %w", key, holder, time.Since(k.since).Round(time.Millisecond), ctx.Err())
}

// drop forgets a key that nobody uses. l.mu is held.
func (l *Locks) drop(key string, k *keyLock) {
	if k.users--; k.users == 0 {
		delete(l.keys, key)
	}
}
