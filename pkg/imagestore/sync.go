package imagestore

import (
	"context"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// syncer brings the store's file system to disk with syncfs(2), which reports write errors since Linux 5.8. One call
// covers all who asked before it began: layers that finish together share one.
type syncer struct {
	root   *os.File
	queued sync.WaitGroup

	// dirty is how many bytes were written since a sync began.
	dirty atomic.Int64

	mu      sync.Mutex
	running *syncRun // in the kernel now; may have begun before a caller's last write
	next    *syncRun // begins when running ends
}

type syncRun struct {
	done chan struct{}
	err  error
}

func newSyncer(root string) (*syncer, error) {
	f, err := os.Open(root)
	if err != nil {
		return nil, err
	}
	return &syncer{root: f}, nil
}

func (s *syncer) close() {
	s.queued.Wait()
	_ = s.root.Close()
}

// wait returns once everything written before the call is on disk.
func (s *syncer) wait(ctx context.Context) error {
	s.mu.Lock()
	run := s.next
	if run == nil {
		run = &syncRun{done: make(chan struct{})}
		if s.running == nil {
			s.running = run
			s.mu.Unlock()
			s.run(run)
			return run.err
		}
		s.next = run
	}
	s.mu.Unlock()
	select {
	case <-run.done:
		return run.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// ahead is how many dirty bytes are worth a sync that nobody waits for.
const ahead = 64 << 20

// wrote tells of n bytes written. Now and then it lets the disk begin: it works while the pull goes on, and the sync at
// the end has little left to do.
func (s *syncer) wrote(n int64) {
	if s.dirty.Add(n) < ahead {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running != nil {
		return
	}
	run := &syncRun{done: make(chan struct{})}
	s.running = run
	s.queued.Go(func() { s.run(run) })
}

// run does the work for those who wait, and then starts what was queued meanwhile on behalf of the queued.
func (s *syncer) run(r *syncRun) {
	s.dirty.Store(0)
	if err := unix.Syncfs(int(s.root.Fd())); err != nil {
		r.err = fmt.Errorf("syncfs: %w", err)
	}
	s.mu.Lock()
	s.running, s.next = s.next, nil
	next := s.running
	s.mu.Unlock()
	close(r.done)
	if next != nil {
		s.queued.Go(func() { s.run(next) })
	}
}
