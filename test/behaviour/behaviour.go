// Package behaviour checks what is promised of a node, and prints for each promise whether it holds and how long it took to
// see that. The tests below a real Kubernetes are made of it (test/kubelet, test/cluster).
package behaviour

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"sync"
	"time"
)

// Score counts checks. It is safe for concurrent use.
type Score struct {
	// Only has the other checks left out, by their names.
	Only *regexp.Regexp

	mu             sync.Mutex
	passed, failed int
}

// Check runs a check, unless ctx has ended. The check returns nil when what it is for holds, and else what was seen instead.
func (s *Score) Check(ctx context.Context, name string, check func() error) {
	if !s.Only.MatchString(name) || ctx.Err() != nil {
		return
	}
	began := time.Now()
	err := check()
	took := time.Since(began).Seconds()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		s.failed++
		fmt.Printf("FAIL %6.1f s  %s: %v\n", took, name, err)
		return
	}
	s.passed++
	fmt.Printf("PASS %6.1f s  %s\n", took, name)
}

// Failed is how many checks have failed so far.
func (s *Score) Failed() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// String is "N passed, M failed".
func (s *Score) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return fmt.Sprintf("%d passed, %d failed", s.passed, s.failed)
}

// Until tries check until it returns nil, every so often, for what can't be waited for; after the limit its last error is the
// result.
func Until(ctx context.Context, limit, every time.Duration, check func() error) error {
	for deadline := time.Now().Add(limit); ; {
		err := check()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not within %v: %w", limit, err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(every):
		}
	}
}

// Page gets http://at/ over a connection of its own.
func Page(at string) (string, error) {
	fresh := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	q, err := fresh.Get("http://" + at + "/")
	if err != nil {
		return "", err
	}
	defer q.Body.Close()
	b, err := io.ReadAll(q.Body)
	return string(b), err
}

// Welcomed gets the page of the test images' web server.
func Welcomed(at string) error {
	page, err := Page(at)
	if err == nil && !strings.Contains(page, "Welcome to nginx") {
		err = fmt.Errorf("%s answers %.100q", at, page)
	}
	return err
}
