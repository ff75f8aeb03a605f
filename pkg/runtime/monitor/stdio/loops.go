package stdio

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// MaxLoops is how many Loops there may be; the logs of further file systems share them.
const MaxLoops = 64

// Loops serve all containers of a node: each Loop those whose logs are in one file system, the first one those without a
// log. Safe for concurrent use.
type Loops struct {
	log  *slog.Logger
	keep func(number int, journal []int)

	mu    sync.Mutex
	loops map[int]*Loop // by number
	held  []*Streams    // restored; not read before Begin
	begun bool
}

// New starts the first Loop. When another is made, keep, unless nil, gets the files of its journal, before anything is in it,
// so that they outlive this process. Close ends them.
func New(log *slog.Logger, keep func(number int, journal []int)) (*Loops, error) {
	g := &Loops{log: log, keep: keep, loops: map[int]*Loop{}, begun: true}
	first, err := newLoop(log)
	if err != nil {
		return nil, err
	}
	g.loops[0] = first
	return g, nil
}

// Resume goes on with the journals of a former process, by number, see Journals, the first of which must be there. It owns
// the files, also on error. The Streams are restored next, those with a slot in Unfinished first. Nothing of theirs is read
// before Begin, which must follow, so that attachments that are restored after them miss nothing.
func Resume(log *slog.Logger, keep func(number int, journal []int), journals map[int][]int) (*Loops, error) {
	g := &Loops{log: log, keep: keep, loops: map[int]*Loop{}}
	var failed []error
	for n, files := range journals {
		failed = append(failed, g.adopt(n, files))
	}
	if err := errors.Join(failed...); err != nil {
		g.Close()
		return nil, err
	}
	if g.loops[0] == nil {
		g.Close()
		return nil, fmt.Errorf("the first journal is missing: %w", errdefs.ErrDataLoss)
	}
	return g, nil
}

// Begin says that all Streams were restored, and has them read.
func (g *Loops) Begin() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.begun = true
	for _, l := range g.loops {
		l.reserved = false
	}
	for _, s := range g.held {
		s.l.post(s.begin)
	}
	g.held = nil
}

// Adopt goes on with a journal of a process that has died. It owns the files, also on error: ErrFailedPrecondition when
// this number is used. The Streams are restored next, and then Begin is called.
func (g *Loops) Adopt(number int, journal []int) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.adopt(number, journal)
}

func (g *Loops) adopt(number int, journal []int) error {
	old := g.loops[number]
	if old != nil && (number != 0 || old.users.Load() > 0) || number < 0 || number >= MaxLoops {
		closeAll(journal...)
		return fmt.Errorf("journal %d: it is in use: %w", number, errdefs.ErrFailedPrecondition)
	}
	l, err := resumeLoop(g.log, journal)
	if err != nil {
		return fmt.Errorf("journal %d: %w", number, err)
	}
	if old != nil {
		old.Close()
	}
	l.number, l.reserved = number, true
	g.loops[number] = l
	return nil
}

// Journals are the files that Resume needs. They stay the Loops'.
func (g *Loops) Journals() map[int][]int {
	g.mu.Lock()
	defer g.mu.Unlock()
	all := map[int][]int{}
	for n, l := range g.loops {
		all[n] = []int{l.journal.memfd, l.journal.in, l.journal.out}
	}
	return all
}

// Unfinished are the Slots of the Streams that a former process was serving when it died.
func (g *Loops) Unfinished() (slots []int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for n, l := range g.loops {
		if lost := l.journal.lost; lost != nil {
			slots = append(slots, n*maxSlots+lost.slot)
		}
	}
	return slots
}

// Pause stops all Loops, each at a point where nothing is half done. Until resume is called, which must happen but for an
// execve(2), only Save may be called.
func (g *Loops) Pause() (resume func(), err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	var again []func()
	resume = func() {
		for _, f := range again {
			f()
		}
	}
	for _, l := range g.loops {
		f, err := l.Pause()
		if err != nil {
			resume()
			return nil, err
		}
		again = append(again, f)
	}
	return resume, nil
}

// Close ends the Loops; Streams that were not closed keep their descriptors.
func (g *Loops) Close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, l := range g.loops {
		l.Close()
	}
}

// Add begins to serve a container. The descriptors and the log are the Loop's from now on, also on error.
func (g *Loops) Add(c Config) (*Streams, error) {
	log := -1
	if c.Log != nil {
		log = c.Log.FD()
	}
	l, err := g.of(log)
	if err != nil {
		closeAll(c.Stdin, c.Stdout, c.Stderr, c.Terminal)
		if c.Log != nil {
			_ = c.Log.Close()
		}
		return nil, fmt.Errorf("stdio of %s: %w", c.ID, err)
	}
	return l.add(c)
}

// Restore goes on with the streams that another process has saved; died tells that it could not say its last word. The
// files are the Loop's from now on, also on error. A file system that does not answer is no error: what goes on is the container,
// and its output when the Loop comes to it.
func (g *Loops) Restore(id string, v Saved, f Files, died bool, inputClosed func()) (*Streams, error) {
	var l *Loop
	g.mu.Lock()
	if v.Slot >= 0 || f.Log < 0 {
		l = g.loops[max(v.Slot, 0)/maxSlots]
	}
	known := l != nil
	if known {
		if v.Slot >= 0 {
			v.Slot -= l.number * maxSlots
		}
		l.users.Add(1)
	}
	g.mu.Unlock()
	if !known {
		var err error
		if l, err = g.of(f.Log); err != nil {
			closeAll(f.Stdin, f.Stdout, f.Stderr, f.Terminal, f.Log)
			return nil, fmt.Errorf("stdio of %s: %w", id, err)
		}
		if v.Slot >= 0 {
			v.Slot = maxSlots // which it can't have
		}
	} else if f.Log >= 0 && l.number > 0 {
		g.identify(l, f.Log)
	}
	g.mu.Lock()
	hold := !g.begun
	g.mu.Unlock()
	s, err := l.restore(id, v, f, died && l.resumed, hold, inputClosed) // not resumed: the journal is not the one that it was
	if err != nil || !hold {
		return s, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.begun {
		l.post(s.begin)
	} else {
		g.held = append(g.held, s)
	}
	return s, nil
}

// of returns the Loop of the file system of a log (-1: none), with one user more.
func (g *Loops) of(log int) (*Loop, error) {
	dev, err := deviceOf(log)
	if err != nil {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	l := g.find(dev)
	if l == nil {
		if l, err = g.another(dev); err != nil {
			return nil, err
		}
		l.study(log)
	}
	l.users.Add(1)
	return l, nil
}

// deviceOf is the file system of a log, 0 for -1. Nothing is asked of it: it may hang.
func deviceOf(log int) (uint64, error) {
	if log < 0 {
		return 0, nil
	}
	var st unix.Statx_t // in which the device is, whatever the mask
	if err := unix.Statx(log, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE, &st); err != nil {
		return 0, fmt.Errorf("log: %w", err)
	}
	return unix.Mkdev(st.Dev_major, st.Dev_minor), nil
}

func (g *Loops) find(dev uint64) *Loop {
	if dev == 0 {
		return g.loops[0]
	}
	for _, l := range g.loops {
		if l.dev == dev {
			return l
		}
	}
	return nil
}

// another returns a Loop for a file system that has none: one that has no container any more, or a new one.
func (g *Loops) another(dev uint64) (*Loop, error) {
	for n, l := range g.loops {
		if n > 0 && !l.reserved && l.users.Load() == 0 {
			l.dev = dev
			l.post(func() { l.flushes = false })
			return l, nil
		}
	}
	number := 1
	for g.loops[number] != nil {
		number++
	}
	if number >= MaxLoops {
		return g.loops[1+int(dev%(MaxLoops-1))], nil
	}
	l, err := newLoop(g.log)
	if err != nil {
		return nil, err
	}
	l.number, l.dev = number, dev
	g.loops[number] = l
	if g.keep != nil {
		g.keep(number, []int{l.journal.memfd, l.journal.in, l.journal.out})
	}
	return l, nil
}

// identify finds out, once, which file system a Loop of a former process serves.
func (g *Loops) identify(l *Loop, log int) {
	dev, err := deviceOf(log)
	if err != nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if l.dev == 0 {
		l.dev = dev
		l.study(log)
	}
}

// study has the Loop ask the file system of its logs what it is like, before it gets the log: where that hangs, only the Loop
// waits.
func (l *Loop) study(log int) { l.post(func() { l.flushes = l.flushes || flushes(log) }) }

// flushes tells whether close(2) of a file may have to wait for its file system: it does nothing in those of a local disk or
// in memory, and may do something in others (network file systems, FUSE).
func flushes(fd int) bool {
	var st unix.Statfs_t
	if unix.Fstatfs(fd, &st) != nil {
		return true
	}
	switch uint32(st.Type) {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.F2FS_SUPER_MAGIC, unix.TMPFS_MAGIC:
		return false
	}
	return true
}
