package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/seed-9a14075a/cri-server/test/testnode"
)

// resources are what the node has while there is no pod.
type resources struct {
	mounts   int
	snapshot testnode.Snapshot
	fds      []string // of cri-monitor, what they are
}

// slack is how many descriptors of cri-monitor may come and go: connections of the server that runs, files of a list that
// is being read.
const slack = 6

// loopFiles are the descriptors that cri-monitor opens with the first log in a file system, and keeps: the journal's three,
// and its loop's epoll set and eventfd.
const loopFiles = 5

func (t *torture) measureBase(context.Context) error {
	pid := t.monitorPid()
	if pid == 0 {
		return fmt.Errorf("there is no cri-monitor")
	}
	t.base = resources{mounts: ownMounts(), snapshot: testnode.Take(), fds: descriptors(pid)}
	return nil
}

func ownMounts() int {
	b, _ := os.ReadFile("/proc/self/mountinfo")
	return strings.Count(string(b), "\n") - longIDs(string(b))
}

// descriptors are the kinds of a process's open files.
func descriptors(pid int) []string {
	dir := fmt.Sprintf("/proc/%d/fd/", pid)
	fds, _ := os.ReadDir(dir)
	var kinds []string
	for _, fd := range fds {
		if to, err := os.Readlink(dir + fd.Name()); err == nil {
			kinds = append(kinds, to)
		}
	}
	slices.Sort(kinds)
	return kinds
}

// checkEmpty has the workers rest and removes their pods; nothing may be left of them.
func (t *torture) checkEmpty(ctx context.Context) error {
	t.steps.Lock()
	defer t.steps.Unlock()
	t.trace("check: empty")
	for _, w := range t.workers {
		for len(w.pods) > 0 && ctx.Err() == nil {
			if err := w.removePod(ctx, w.pods[0]); err != nil {
				return t.unlessOver(ctx, err)
			}
		}
	}
	var wrong []string
	for began := time.Now(); time.Since(began) < settleTime && ctx.Err() == nil; sleep(ctx, 50*time.Millisecond) {
		var err error
		if wrong, err = t.look(ctx); err != nil {
			return err
		}
		wrong = append(wrong, t.left()...)
		if len(wrong) == 0 {
			t.tally.empty.Add(1)
			return nil
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("no pods, but left are:\n\t%s", strings.Join(wrong[:min(len(wrong), 40)], "\n\t"))
}

func (t *torture) left() (wrong []string) {
	for _, l := range t.base.snapshot.Added(testnode.Take()) {
		if !strings.HasPrefix(l, "cgroup ") || strings.Contains(l, t.cgroup()+"/") { // others' come and go
			wrong = append(wrong, l)
		}
	}
	fds := descriptors(t.monitorPid())
	if len(fds) > len(t.base.fds)+loopFiles+slack {
		wrong = append(wrong, fmt.Sprintf("cri-monitor has %d descriptors, %d at first: %v", len(fds), len(t.base.fds), fds))
	}
	if t.unit != nil {
		if kept := t.unit.Kept(); len(kept) > loopFiles+slack {
			wrong = append(wrong, fmt.Sprintf("the descriptor store keeps %v", kept))
		}
	}
	return wrong
}
