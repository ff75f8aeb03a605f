package network

import (
	"log/slog"
	"path/filepath"
	"sync"

	"github.com/fsnotify/fsnotify"
)

// watcher calls changed when something below a directory, or on the way to it, changes. The directory and its parents
// may come and go.
type watcher struct {
	w    *fsnotify.Watcher
	wg   sync.WaitGroup
	once sync.Once
}

// watch starts watching. Without inotify (its instances are limited) changes are seen when somebody asks.
func watch(dir string, changed func(), log *slog.Logger) *watcher {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		log.Warn("the CNI configuration is not watched", "dir", dir, "err", err)
		return nil
	}
	x := &watcher{w: w}
	x.add(dir)
	x.wg.Go(func() {
		for {
			select {
			case _, ok := <-w.Events:
				if !ok {
					return
				}
				x.add(dir)
				changed()
			case err, ok := <-w.Errors:
				if !ok {
					return
				}
				log.Warn("watch of the CNI configuration", "dir", dir, "err", err)
				changed()
			}
		}
	})
	return x
}

// add watches dir and its parent, or the nearest directory above it that there is. Watching twice is once.
func (x *watcher) add(dir string) {
	have := x.w.Add(dir) == nil
	for parent := filepath.Dir(dir); ; parent = filepath.Dir(parent) {
		if x.w.Add(parent) == nil || parent == filepath.Dir(parent) {
			break
		}
	}
	if !have {
		_ = x.w.Add(dir) // it came after the first look and before its parent was watched
	}
}

func (x *watcher) close() {
	x.once.Do(func() { _ = x.w.Close() })
	x.wg.Wait()
}
