package network

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

// How long the answer of CNI's STATUS verb is good, how long it may take, and how long the first caller waits for it.
const (
	statusFresh   = 4 * time.Second
	statusTimeout = 20 * time.Second
	statusFirst   = 2 * time.Second
)

// status keeps the last answer of the plugins' STATUS, which runs programs, so that Status never waits for them twice.
type status struct {
	n      *CNI
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	of      string // the configuration that the answer is of
	at      time.Time
	err     error
	running chan struct{} // closed when the run ends
	closed  bool
}

func (s *status) init(n *CNI) {
	s.n = n
	s.ctx, s.cancel = context.WithCancel(context.Background())
}

func (s *status) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.wg.Wait()
}

// Status implements Network: a configuration, its plugins, and, with CNI 1.1, what these say themselves.
func (n *CNI) Status() error {
	list, err := n.list()
	if err != nil {
		return err
	}
	where := list.file
	if where == "" {
		where = "built-in"
	}
	for _, p := range list.Plugins {
		if _, err := n.exec.FindInPath(p.Network.Type, n.cfg.BinDirs); err != nil {
			return fmt.Errorf("network %s (%s): %w: %w", list.Name, where, err, errdefs.ErrUnavailable)
		}
	}
	if err := n.status.ask(list); err != nil {
		return fmt.Errorf("network %s (%s): %w: %w", list.Name, where, err, errdefs.ErrUnavailable)
	}
	return nil
}

// ask returns the last answer for list, starting a new run when it is old. Only the first caller for a configuration
// waits, and not long.
func (s *status) ask(list *confList) error {
	s.mu.Lock()
	key := string(list.Bytes)
	if s.of != key {
		s.of, s.at, s.err = key, time.Time{}, nil
	}
	first := s.at.IsZero()
	if time.Since(s.at) > statusFresh && s.running == nil && !s.closed {
		done := make(chan struct{})
		s.running = done
		s.wg.Go(func() { s.run(list, key, done) })
	}
	running := s.running
	s.mu.Unlock()
	if first && running != nil {
		select {
		case <-running:
		case <-time.After(statusFirst):
			return fmt.Errorf("its plugins have not answered STATUS within %s", statusFirst)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

func (s *status) run(list *confList, key string, done chan struct{}) {
	ctx, cancel := context.WithTimeout(s.ctx, statusTimeout)
	defer cancel()
	err := s.n.lib.GetStatusNetworkList(ctx, list.NetworkConfigList)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.of == key {
		s.at, s.err = time.Now(), err
	}
	s.running = nil
	close(done)
}
