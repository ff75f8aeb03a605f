package operation

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

func TestLocksExclude(t *testing.T) {
	var l Locks
	counts := make([]int, 3) // the race detector sees an unlocked access
	var wg sync.WaitGroup
	for i := range 90 {
		wg.Go(func() {
			unlock, err := l.Lock(t.Context(), fmt.Sprint(i%3))
			if err != nil {
				t.Error(err)
				return
			}
			counts[i%3]++
			unlock()
			unlock()
		})
	}
	wg.Wait()
	for _, n := range counts {
		if n != 30 {
			t.Errorf("%v", counts)
		}
	}
	if len(l.keys) != 0 {
		t.Errorf("%d keys left", len(l.keys))
	}
}

func TestLockNamesItsHolder(t *testing.T) {
	var l Locks
	_, err := Do(t.Context(), quiet(), "stop abc", 0, func(ctx context.Context, op *Op) (any, error) {
		unlock, err := l.Lock(ctx, "abc")
		if err != nil {
			return nil, err
		}
		defer unlock()
		op.Stage("grace")
		other, err := l.Lock(t.Context(), "def")
		if err != nil {
			return nil, err
		}
		other()
		wait, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		_, err = l.Lock(wait, "abc")
		return nil, err
	})
	if !errdefs.IsDeadlineExceeded(err) || !strings.Contains(err.Error(), `abc is busy: "stop abc" at stage "grace"`) {
		t.Error(err)
	}
	if len(l.keys) != 0 {
		t.Errorf("%d keys left", len(l.keys))
	}
}
