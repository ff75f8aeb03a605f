package network

import (
	"log/slog"
	"path/filepath"
	"strings"
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
	dir = filepath.Clean(dir)
	x := &watcher{w: w}
	x.add(dir)
	x.wg.Go(func() {
		for {
			select {
			case e, ok := <-w.Events:
				if !ok {
					return
				}
				if !concerns(e.Name, dir) {
					continue
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

// concerns tells whether something that happened to a path has to do with dir: it is there, or is a part of the way to it. Of
// all else beside that way there may be much, such as a log.
func concerns(path, dir string) bool {
	path = filepath.Clean(path) // of what is in / or in ., fsnotify tells //name and ./name
	return path == dir || strings.HasPrefix(path, dir+"/") || strings.HasPrefix(dir, strings.TrimSuffix(path, "/")+"/")
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
