package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/monitor"
	"github.com/seed-9a14075a/cri-server/test/testnode"
)

// upgrader has cri-monitor go on in its own program again and again, while the writer writes and everything else that it
// carries goes on. Nothing may notice: each error of anybody ends the run.
type upgrader struct {
	n    *testnode.Node
	o    *options
	took []time.Duration // of each upgrade, as who asks for it sees it
	pid  int
}

// run upgrades until it was done often enough, and has the writer end.
func (u *upgrader) run(ctx context.Context, w *writer) (err error) {
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	l, err := startLoad(ctx, u.n)
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	var at sync.WaitGroup
	at.Go(func() {
		if err := l.run(ctx); err != nil {
			fail(err)
		}
	})
	began := time.Now()
	err = u.upgrade(ctx, w)
	l.end()
	at.Wait()
	if cause := context.Cause(ctx); cause != nil && ctx.Err() != nil {
		err = cause
	}
	if e := os.WriteFile(filepath.Join(w.dir, "result", "written.stop"), nil, 0o644); err == nil {
		err = e
	}
	if err != nil {
		return fmt.Errorf("after %d upgrades: %w", len(u.took), err)
	}
	slices.Sort(u.took)
	n := len(u.took)
	fmt.Printf("%d upgrades of cri-monitor %d in %v: shortest %v, median %v, 99 in 100 within %v, longest %v\n", n, u.pid, time.Since(began).Round(time.Second),
		round(u.took[0]), round(u.took[n/2]), round(u.took[n*99/100]), round(u.took[n-1]))
	u.pauses()
	return l.report()
}

// pauses prints for how long all stood still, as cri-monitor itself has logged it: from the freeze to where the next program
// goes on.
func (u *upgrader) pauses() {
	b, _ := os.ReadFile(filepath.Join(u.n.State, "monitor", "monitor.log"))
	var all []time.Duration
	for line := range strings.Lines(string(b)) {
		if _, took, ok := strings.Cut(line, " msg=upgraded "); ok {
			_, took, _ = strings.Cut(strings.TrimSpace(took), "took=")
			if d, err := time.ParseDuration(took); err == nil {
				all = append(all, d)
			}
		}
	}
	if n := len(all); n > 0 {
		slices.Sort(all)
		fmt.Printf("all stood still for: shortest %v, median %v, 99 in 100 within %v, longest %v\n", round(all[0]), round(all[n/2]), round(all[n*99/100]), round(all[n-1]))
	}
}

func round(d time.Duration) time.Duration { return d.Round(10 * time.Microsecond) }

func (u *upgrader) upgrade(ctx context.Context, w *writer) error {
	rotated := time.Now()
	for len(u.took) < u.o.upgrades {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.ended():
			return errors.New("the writer has ended by itself: it needs a greater -for")
		case <-time.After(time.Duration(rand.Int64N(int64(50 * time.Millisecond)))):
		}
		if err := u.once(ctx); err != nil {
			return err
		}
		if time.Since(rotated) > 2*time.Second {
			if err := w.rotate(ctx, u.n); err != nil {
				return err
			}
			rotated = time.Now()
		}
	}
	return nil
}

func (u *upgrader) once(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	c, err := monitor.Dial(ctx, filepath.Join(u.n.State, "monitor", "monitor.sock"))
	if err != nil {
		return err
	}
	defer c.Close()
	began := time.Now()
	v, err := c.Upgrade(ctx, u.n.Program("cri-monitor"))
	if err != nil {
		return fmt.Errorf("upgrade: %w", err)
	}
	if u.pid != 0 && v.Pid != u.pid {
		return fmt.Errorf("cri-monitor was process %d and is %d: it was not upgraded in place", u.pid, v.Pid)
	}
	u.pid, u.took = v.Pid, append(u.took, time.Since(began))
	return nil
}
