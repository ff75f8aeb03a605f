package cgroupdriver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"sync"
	"time"
)

// transientDir is where systemd keeps the unit files that it made for callers (systemd.unit(5)): one for each such unit, for as
// long as it knows the unit.
const transientDir = "/run/systemd/transient"

// lookAgain is how long after its cgroup a scope may be known to systemd before something is done about it.
const lookAgain = 2 * time.Second

// going are the scopes whose cgroups are gone, and which systemd may not have noticed yet.
type going struct {
	dir string // transientDir

	mu    sync.Mutex
	since map[string]leaving // by the scope's path
	armed bool               // a look at them is due
}

// leaving is a scope that systemd knew when its cgroup went. Its file tells it from another of the same name.
type leaving struct {
	at   time.Time
	file os.FileInfo // nil: not to be seen
}

// Delete kills what is left and removes the directories. With a cgroup2 hierarchy, which tells systemd of the last process's
// end, it forgets the scope by itself, and needs no job for it: a job to stop the scope costs systemd as much as its
// start. A look that follows makes sure that it did. On v1 alone nobody tells systemd, and it is asked.
//
// systemd, which may be executing itself anew on a busy machine, is waited for as long as in Create.
func (d *systemd) Delete(ctx context.Context, p string) error {
	p, err := clean(p)
	if err != nil {
		return err
	}
	d.places.end(p)
	_, scope, ok := scopeOf(p)
	if !ok {
		return d.cgroupfs.Delete(ctx, p)
	}
	if d.unified != "" {
		if err := d.cgroupfs.Delete(ctx, p); err != nil {
			return err
		}
		d.lookAfter(p)
		return nil
	}
	if pids, err := d.processes(p); err != nil || len(pids) > 0 {
		if err := d.cgroupfs.Kill(ctx, p); err != nil {
			return err
		}
	}
	if err := d.stop(ctx, scope); err != nil {
		err = fmt.Errorf("delete scope %s: %w", p, err)
		return errors.Join(err, d.cgroupfs.Delete(ctx, p))
	}
	return d.cgroupfs.Delete(ctx, p)
}

// seen looks at systemd's file of a scope: none when systemd does not know the scope. Where its directory can't be seen, it is
// taken to.
func (g *going) seen(p string) (file os.FileInfo, known bool) {
	file, err := os.Lstat(path.Join(g.dir, path.Base(p)))
	if !errors.Is(err, os.ErrNotExist) {
		return file, true
	}
	_, err = os.Lstat(g.dir)
	return nil, err != nil
}

// still tells whether systemd knows the scope that l is.
func (g *going) still(p string, l leaving) bool {
	file, known := g.seen(p)
	return known && (file == nil || l.file == nil || os.SameFile(file, l.file))
}

// lookAfter has a look at the scope later, if systemd knows it still.
func (d *systemd) lookAfter(p string) {
	file, known := d.going.seen(p)
	if !known {
		return
	}
	d.going.mu.Lock()
	defer d.going.mu.Unlock()
	d.going.since[p] = leaving{time.Now(), file}
	if !d.going.armed {
		d.going.armed = true
		time.AfterFunc(lookAgain, d.look)
	}
}

// look has systemd stop the scopes that it knows although their cgroups went a while ago. It runs once at a time, and not at all
// while there are none. What it could not do it does again.
func (d *systemd) look() {
	for _, p := range d.going.due(time.Now()) {
		if err := d.forget(context.Background(), p); err != nil {
			d.log.Warn("systemd does not let go of the scope of a container that is gone; it is asked again", "cgroup", p, "error", err)
		}
	}
	d.going.mu.Lock()
	defer d.going.mu.Unlock()
	if d.going.armed = len(d.going.since) > 0; d.going.armed {
		time.AfterFunc(lookAgain, d.look)
	}
}

// due returns the scopes whose time it is, and drops those that systemd has forgotten.
func (g *going) due(now time.Time) (paths []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for p, l := range g.since {
		switch {
		case !g.still(p, l):
			delete(g.since, p)
		case now.Sub(l.at) >= lookAgain:
			paths = append(paths, p)
		}
	}
	return paths
}

// forget has systemd stop a scope that was deleted. One that has a process was made anew by somebody else and is left alone.
func (d *systemd) forget(ctx context.Context, p string) error {
	d.going.mu.Lock()
	l, ok := d.going.since[p]
	d.going.mu.Unlock()
	if ok && d.going.still(p, l) {
		if pids, err := d.processes(p); err != nil {
			return err
		} else if len(pids) == 0 {
			if err := d.stop(ctx, path.Base(p)); err != nil {
				return err
			}
		}
	}
	d.going.mu.Lock()
	defer d.going.mu.Unlock()
	delete(d.going.since, p)
	return nil
}
