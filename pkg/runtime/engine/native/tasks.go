package native

import (
	"fmt"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

// maxOpen is of how many containers the `tasks` files stay open.
const maxOpen = 16

// taskCache keeps the `tasks` files of the containers that had the latest sessions: a probe comes again, and to open and
// close a file in each of a dozen hierarchies takes as long as its fork. That a file is open keeps no cgroup from being
// removed.
type taskCache struct {
	mu   sync.Mutex
	last []*taskFiles // the latest first
}

// taskFiles are one container's, as openTasks has opened them.
type taskFiles struct {
	id    string // the container's
	files []int
	dirs  []string
	users int
	gone  bool // from the cache: the last user closes them
}

// open returns the files of a session in cg, whose v1 directories must be the container's own. release must follow.
func (t *taskCache) open(of *container, cg *engine.Cgroup) (f *taskFiles, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := slices.IndexFunc(t.last, func(f *taskFiles) bool { return f.id == of.id })
	if i >= 0 {
		f = t.last[i]
		copy(t.last[1:], t.last[:i])
		t.last[0] = f
		f.users++
		return f, nil
	}
	f = &taskFiles{id: of.id, users: 1, gone: of.forgotten}
	if f.files, f.dirs, err = openTasks(cg); err != nil {
		f.close()
		return nil, err
	}
	if f.gone {
		return f, nil
	}
	if len(t.last) == maxOpen {
		t.drop(maxOpen - 1)
	}
	t.last = slices.Insert(t.last, 0, f)
	return f, nil
}

func (t *taskCache) release(f *taskFiles) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f.users--; f.users == 0 && f.gone {
		f.close()
	}
}

// drop forgets the files at i. t.mu is held.
func (t *taskCache) drop(i int) {
	f := t.last[i]
	t.last = slices.Delete(t.last, i, i+1)
	if f.gone = true; f.users == 0 {
		f.close()
	}
}

// outdated closes the files of a container: the next session opens them anew.
func (t *taskCache) outdated(id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if i := slices.IndexFunc(t.last, func(f *taskFiles) bool { return f.id == id }); i >= 0 {
		t.drop(i)
	}
}

// forget closes the files of a container that is deleted. A session that comes too late for that keeps none open.
func (t *taskCache) forget(of *container) {
	t.mu.Lock()
	defer t.mu.Unlock()
	of.forgotten = true
	if i := slices.IndexFunc(t.last, func(f *taskFiles) bool { return f.id == of.id }); i >= 0 {
		t.drop(i)
	}
}

// clear closes all.
func (t *taskCache) clear() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(t.last) > 0 {
		t.drop(len(t.last) - 1)
	}
}

func (f *taskFiles) close() {
	for _, fd := range f.files {
		closeFD(fd)
	}
	f.files = nil
}

// openTasks adds the files of the stub's v1 cgroups.
func (f *forking) openTasks(cg *engine.Cgroup) (err error) {
	if len(cg.V1) == 0 {
		return nil
	}
	if of := f.launch.of; of != nil {
		if f.kept, err = f.engine.tasks.open(of, cg); err == nil {
			f.fds, f.tasks = append(f.fds, f.kept.files...), f.kept.dirs
		}
		return err
	}
	files, dirs, err := openTasks(cg)
	f.closing = append(f.closing, files...)
	f.fds, f.tasks = append(f.fds, files...), dirs
	return err
}

// openTasks opens the files by which a stub joins v1 hierarchies, and tells of which directories they are. It joins them
// itself: a write of 0 to `tasks` by the process is many times cheaper than its parent's write of its pid to
// cgroup.procs. The kernel checks the rights of the opener. The caller closes the files, also on error.
func openTasks(cg *engine.Cgroup) (files []int, dirs []string, err error) {
	for name, dir := range cg.V1 {
		fd, err := unix.Open(dir+"/tasks", unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return files, nil, fmt.Errorf("cgroup %s: %s: %w", name, dir, classify(err))
		}
		files, dirs = append(files, fd), append(dirs, dir)
	}
	return files, dirs, nil
}
