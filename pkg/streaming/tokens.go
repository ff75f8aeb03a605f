package streaming

import (
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

// maxWaiting is how many URLs may wait for their client; kubelet sees the refusal as "too many requests".
const maxWaiting = 1000

// session is what a token stands for.
type session struct {
	kind    string // first part of the path
	request any
}

// tokens holds prepared sessions until their client comes, or doesn't.
type tokens struct {
	timeout time.Duration

	mu      sync.Mutex
	waiting map[string]*waiting
}

type waiting struct {
	session
	expire *time.Timer
}

// put keeps a session and returns the token that takes it.
func (t *tokens) put(s session) (string, error) {
	raw := make([]byte, 32)
	_, _ = rand.Read(raw) // never fails (crypto/rand)
	token := base64.RawURLEncoding.EncodeToString(raw)
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.waiting) >= maxWaiting {
		return "", fmt.Errorf("%d sessions wait for their client already: %w", maxWaiting, errdefs.ErrResourceExhausted)
	}
	if t.waiting == nil {
		t.waiting = map[string]*waiting{}
	}
	t.waiting[token] = &waiting{s, time.AfterFunc(t.timeout, func() { t.take(token) })}
	return token, nil
}

// take hands out a session, once.
func (t *tokens) take(token string) (session, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	w := t.waiting[token]
	if w == nil {
		return session{}, false
	}
	w.expire.Stop()
	delete(t.waiting, token)
	return w.session, true
}

func (t *tokens) clear() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for token, w := range t.waiting {
		w.expire.Stop()
		delete(t.waiting, token)
	}
}
