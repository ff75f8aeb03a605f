package cri

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

// What one scrape may cost for what a container can make many of. Beyond it counts are too low.
const (
	maxDirs      = 256    // cgroups below a container's
	maxProcesses = 1024   // of a container, looked into for files
	maxFiles     = 16384  // of a container, looked at for being sockets
	maxScrape    = 131072 // files in all
)

// scrape keeps what is the same for all containers during one request.
type scrape struct {
	devices     map[[2]uint64]string
	filesystems map[string]*filesystem
	files       int // that may still be looked at

	values []value // room for read
	counts []int
}

func newScrape() *scrape {
	return &scrape{devices: map[[2]uint64]string{}, filesystems: map[string]*filesystem{}, files: maxScrape}
}

// filesystem is where writable layers are.
type filesystem struct {
	device                    string // /dev/sda1, or "0:42" where there is no block device
	major, minor              uint64
	bytes, inodes, inodesFree uint64
}

// processes is what /proc tells of a container.
type processes struct {
	count, files, sockets uint64
	maxFiles              *uint64 // RLIMIT_NOFILE of its first process
}

// reading reads a running container; nil if it has ended.
func (s *Server) reading(look *scrape, ctr *runtime.Container) *reading {
	st, err := s.cgroups.Stats(ctr.CgroupPath)
	if err != nil {
		return nil
	}
	r := &reading{ctr: ctr, stats: st, version: s.cgroups.Version()}
	if usage, ok := s.containers.LayerUsage(ctr.ID); ok {
		r.layer, r.layerFS = &usage, look.filesystem(usage.Mountpoint)
	}
	if g, err := s.cgroups.Load(ctr.CgroupPath); err == nil {
		r.processes = look.processes(g, ctr.Pid)
	}
	if st.IO == nil {
		return r
	}
	for _, d := range st.IO.Devices {
		r.devices = append(r.devices, deviceIO{d, look.device(d.Major, d.Minor)})
	}
	if fs := r.layerFS; len(r.devices) == 0 && fs != nil && fs.major != 0 {
		// The kernel lists no device before its first I/O; a counter starts at 0.
		r.devices = []deviceIO{{name: fs.device}}
		r.devices[0].Major, r.devices[0].Minor = fs.major, fs.minor
	}
	return r
}

// device names a block device after its link in sysfs.
func (l *scrape) device(major, minor uint64) string {
	key := [2]uint64{major, minor}
	if name, ok := l.devices[key]; ok {
		return name
	}
	name := fmt.Sprintf("%d:%d", major, minor)
	if to, err := os.Readlink("/sys/dev/block/" + name); err == nil {
		name = "/dev/" + strings.ReplaceAll(filepath.Base(to), "!", "/")
	}
	l.devices[key] = name
	return name
}

// filesystem asks the file system at a path; nil if it does not answer.
func (l *scrape) filesystem(path string) *filesystem {
	if f, ok := l.filesystems[path]; ok {
		return f
	}
	l.filesystems[path] = nil
	var st unix.Stat_t
	var fs unix.Statfs_t
	if unix.Stat(path, &st) != nil || unix.Statfs(path, &fs) != nil {
		return nil
	}
	f := &filesystem{
		major: uint64(unix.Major(st.Dev)), minor: uint64(unix.Minor(st.Dev)),
		bytes: fs.Blocks * uint64(fs.Frsize), inodes: fs.Files, inodesFree: fs.Ffree,
	}
	f.device = l.device(f.major, f.minor)
	l.filesystems[path] = f
	return f
}

// processes counts the processes of a container's cgroup and those below it, and their open files.
func (l *scrape) processes(g *engine.Cgroup, first int) *processes {
	dir := g.V1["pids"]
	if dir == "" {
		dir = g.Unified
	}
	p := &processes{}
	pids := cgroupPids(dir)
	p.count = uint64(len(pids))
	files := min(maxFiles, l.files)
	for _, pid := range pids[:min(len(pids), maxProcesses)] {
		open, sockets, looked := openFiles(pid, files)
		p.files += open
		p.sockets += sockets
		files -= looked
		l.files -= looked
	}
	var limit unix.Rlimit
	if first > 0 && unix.Prlimit(first, unix.RLIMIT_NOFILE, nil, &limit) == nil {
		p.maxFiles = &limit.Cur
	}
	return p
}

// cgroupPids lists the processes of a cgroup and those below it, level by level.
func cgroupPids(dir string) []int {
	var pids []int
	dirs := []string{dir}
	for i := 0; i < len(dirs); i++ {
		b, err := os.ReadFile(dirs[i] + "/cgroup.procs")
		if err != nil {
			continue // gone, or threaded: cgroups(7)
		}
		for f := range strings.FieldsSeq(string(b)) {
			if pid, err := strconv.Atoi(f); err == nil && pid > 0 { // 0: not in our pid namespace
				pids = append(pids, pid)
			}
		}
		var st unix.Stat_t
		if unix.Stat(dirs[i], &st) == nil && st.Nlink == 2 {
			continue // no directory below
		}
		entries, _ := os.ReadDir(dirs[i])
		for _, e := range entries {
			if e.IsDir() && len(dirs) < maxDirs {
				dirs = append(dirs, dirs[i]+"/"+e.Name())
			}
		}
	}
	return pids
}

// openFiles counts a process's open files and, among the first limit of them, its sockets; looked is how many were looked
// at. Nothing for a process that has ended.
func openFiles(pid, limit int) (open, sockets uint64, looked int) {
	dir, err := os.Open("/proc/" + strconv.Itoa(pid) + "/fd")
	if err != nil {
		return 0, 0, 0
	}
	defer dir.Close()
	fd := int(dir.Fd())
	for looked < limit {
		names, err := dir.Readdirnames(min(1024, limit-looked))
		for _, name := range names {
			looked++
			var target [8]byte
			n, err := unix.Readlinkat(fd, name, target[:])
			if err == nil && n >= 7 && string(target[:7]) == "socket:" {
				sockets++
			}
		}
		if err != nil {
			return uint64(looked), sockets, looked
		}
	}
	// More than are looked at: since Linux 6.2 the directory's size is their number, before it is 0 (proc_pid_fd(5)).
	if st, err := dir.Stat(); err == nil && st.Size() > int64(looked) {
		return uint64(st.Size()), sockets, looked
	}
	return uint64(looked), sockets, looked
}
