package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/utils"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/network/embedded"
)

// maxConf bounds a configuration file, in bytes.
const maxConf = 1 << 20

// confList is a configuration and where it is from ("" for the built-in one).
type confList struct {
	*libcni.NetworkConfigList
	file string

	compile  sync.Once
	compiled *embedded.Chain // see chain
}

// confDir is the directory of configurations. The first file by name that can be loaded is in force; those before it
// that can't are logged, and named by current's error where none can.
type confDir struct {
	dir string
	log *slog.Logger

	mu    sync.Mutex
	stamp []mark // of the files as they were read
	self  mark   // of the directory as it was listed; zero if a change of what is to be read might not show in it and in stamp
	list  *confList
	err   error
}

// mark is what changes with a file or directory.
type mark struct {
	path       string
	ino        uint64
	size       int64
	mtim, ctim unix.Timespec
}

// tick is more than the times of files lack behind: on ext4 with small inodes they are whole seconds, on VFAT two of them, and the
// kernel's clock for them is late by some ms, in a virtual machine by as long as the processor that keeps it is not run.
const tick = 3 * time.Second

// current returns the configuration in force; errdefs.ErrUnavailable says what is missing. It looks at the directory,
// not only at what the watch told, for a watch may be lost.
func (d *confDir) current() (*confList, error) {
	d.rescan()
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.list, d.err
}

// rescan reads the files again if their names, sizes or times changed.
func (d *confDir) rescan() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.unchanged() {
		return
	}
	files, stamp, err := d.files()
	if err == nil && slices.Equal(stamp, d.stamp) && len(stamp) > 0 {
		return
	}
	former := d.list
	d.stamp, d.list, d.err = stamp, nil, nil
	if err != nil {
		d.err = fmt.Errorf("CNI configuration: %w: %w", err, errdefs.ErrUnavailable)
		return
	}
	var skipped []string
	for _, f := range files {
		l, err := load(f)
		if err == nil {
			d.list = l
			break
		}
		if slices.ContainsFunc([]error{unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.EIO}, func(e error) bool { return errors.Is(err, e) }) {
			d.stamp = nil // it is not the file: try again
		}
		skipped = append(skipped, fmt.Sprintf("%s: %v", f, err))
		d.log.Warn("CNI configuration is passed over", "file", f, "err", err)
	}
	switch {
	case d.list != nil:
		if former == nil || former.file != d.list.file || string(former.Bytes) != string(d.list.Bytes) {
			d.log.Info("CNI configuration loaded", "file", d.list.file, "network", d.list.Name)
		}
	case len(skipped) > 0:
		d.err = fmt.Errorf("no usable CNI configuration in %s: %s: %w", d.dir, strings.Join(skipped, "; "), errdefs.ErrUnavailable)
	default:
		why := "it is empty"
		if len(files) == 0 {
			if _, err := os.Stat(d.dir); err != nil {
				why = "it does not exist"
			} else if all, _ := os.ReadDir(d.dir); len(all) > 0 {
				why = "it has no .conflist, .conf or .json file"
			}
		}
		d.err = fmt.Errorf("no CNI configuration in %s (%s); put a .conflist there or run with --network embedded: %w", d.dir, why, errdefs.ErrUnavailable)
	}
}

// unchanged tells whether the directory lists what it did, and all of that is as it was.
func (d *confDir) unchanged() bool {
	same := func(m mark) bool {
		now, _, ok := markOf(m.path)
		return ok && now == m
	}
	changed := func(m mark) bool { return !same(m) }
	return d.self.path != "" && len(d.stamp) > 0 && same(d.self) && !slices.ContainsFunc(d.stamp, changed)
}

// files returns the configuration files in order, and marks that change when they do.
func (d *confDir) files() (files []string, stamp []mark, _ error) {
	start := time.Now()
	settled := func(m mark) bool { return start.Sub(time.Unix(m.mtim.Unix())) > tick }
	d.self = mark{}
	if self, _, ok := markOf(d.dir); ok && settled(self) {
		d.self = self
	}
	entries, err := os.ReadDir(d.dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, nil, err
	}
	for _, e := range entries {
		path := filepath.Join(d.dir, e.Name())
		m, mode, ok := markOf(path)
		if !ok { // a link perhaps, and what it names comes without a change here
			d.self = mark{}
			continue
		}
		stamp = append(stamp, m)
		if mode == unix.S_IFDIR { // it may hold a configuration's plugins
			if !settled(m) {
				d.self = mark{}
			}
			inside, _ := os.ReadDir(path)
			for _, e := range inside {
				if m, _, ok := markOf(filepath.Join(path, e.Name())); ok {
					stamp = append(stamp, m)
				} else {
					d.self = mark{}
				}
			}
		}
		if mode == unix.S_IFREG && slices.Contains([]string{".conflist", ".conf", ".json"}, filepath.Ext(e.Name())) {
			files = append(files, path)
		}
	}
	slices.Sort(files)
	return files, stamp, nil
}

// markOf returns the mark and the type (inode(7)) of what is at path; not ok: it is gone.
func markOf(path string) (m mark, mode uint32, ok bool) {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return m, 0, false
	}
	return mark{path, st.Ino, st.Size, st.Mtim, st.Ctim}, st.Mode & unix.S_IFMT, true
}

// load reads one file: a list, or the old form of a single plugin.
func load(path string) (*confList, error) {
	b, err := readConf(path)
	if err != nil {
		return nil, err
	}
	var l *libcni.NetworkConfigList
	if filepath.Ext(path) == ".conflist" {
		l, err = libcni.NetworkConfFromBytes(b)
	} else {
		var c *libcni.PluginConfig
		if c, err = libcni.NetworkPluginConfFromBytes(b); err == nil {
			//lint:ignore SA1019 the form is old, but people have it
			l, err = libcni.ConfListFromConf(c)
		}
	}
	if err != nil {
		return nil, err
	}
	if err := utils.ValidateNetworkName(l.Name); err != nil {
		return nil, fmt.Errorf("network name %q is not valid", l.Name)
	}
	if !l.LoadOnlyInlinedPlugins && filepath.Ext(path) == ".conflist" {
		more, err := libcni.NetworkPluginConfsFromFiles(filepath.Dir(path), l.Name)
		if err != nil {
			return nil, err
		}
		l.Plugins = append(l.Plugins, more...)
	}
	if len(l.Plugins) == 0 {
		return nil, errors.New("it lists no plugins")
	}
	if err := inline(l); err != nil {
		return nil, err
	}
	return &confList{NetworkConfigList: l, file: path}, nil
}

// inline writes all plugins into the list's bytes: they are what libcni caches with a result, and DEL has to use the
// configuration as it was at ADD.
func inline(l *libcni.NetworkConfigList) error {
	var all map[string]json.RawMessage
	if err := json.Unmarshal(l.Bytes, &all); err != nil {
		return err
	}
	plugins := make([]json.RawMessage, len(l.Plugins))
	for i, p := range l.Plugins {
		plugins[i] = p.Bytes
	}
	var err error
	if all["plugins"], err = json.Marshal(plugins); err != nil {
		return err
	}
	all["loadOnlyInlinedPlugins"] = json.RawMessage("true")
	l.Bytes, err = json.Marshal(all)
	return err
}

func readConf(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxConf+1))
	if err == nil && len(b) > maxConf {
		err = fmt.Errorf("larger than %d bytes", maxConf)
	}
	return b, err
}
