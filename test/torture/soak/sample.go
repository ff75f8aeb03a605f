package main

import (
	"context"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/admin"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/monitor"
	"github.com/seed-9a14075a/cri-server/test/testnode"
)

// names are what is measured, in the order of the page. The resident set is split: pages of the program come in as its code
// is first used, which is no growth; cri-monitor's are shared memory, since it runs from a memfd. Of cri-server's memory of its
// own the heap's live part, its free one, stacks and tables of the Go runtime are most. The heap at work is what its last own
// collection found in use: what was under way then, and what was allocated while it ran, count there.
var names = []string{
	"cri-server memory of its own, KiB", "cri-server program pages, KiB", "cri-server live heap, KiB", "cri-server objects in the heap",
	"cri-server heap at work, KiB", "cri-server free parts of the heap, KiB", "cri-server stacks, KiB", "cri-server tables of the Go runtime, KiB",
	"cri-server goroutines", "cri-server threads", "cri-server descriptors",
	"cri-monitor memory of its own, KiB", "cri-monitor program pages, KiB", "cri-monitor live heap, KiB", "cri-monitor goroutines", "cri-monitor threads", "cri-monitor descriptors",
	"inodes below root", "inodes below the state directory", "network namespaces", "veth interfaces", "mounts", "cgroups", "processes",
}

// sample measures everything once.
func (s *soak) sample(ctx context.Context) ([]float64, error) {
	s.settle(ctx)
	a := admin.NewClient(filepath.Join(s.node.State, "admin.sock"))
	defer a.Close()
	server, err := a.Process(ctx)
	if err != nil {
		return nil, fmt.Errorf("cri-server: %w", err)
	}
	heap, err := s.collect(ctx)
	if err != nil {
		return nil, err
	}
	c, err := monitor.Dial(ctx, filepath.Join(s.node.State, "monitor", "monitor.sock"))
	if err != nil {
		return nil, fmt.Errorf("cri-monitor: %w", err)
	}
	defer c.Close()
	v, err := c.Version(ctx)
	if err != nil {
		return nil, fmt.Errorf("cri-monitor: %w", err)
	}
	pid := s.node.ServerPid()
	pins, _ := filepath.Glob("/run/netns/*")
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	return []float64{
		status(pid, "RssAnon"), status(pid, "RssFile"), heap.kib("HeapAlloc"), heap["HeapObjects"],
		float64(server.HeapLive) / 1024, heap.kib("HeapSys") - heap.kib("HeapReleased", "HeapAlloc"), heap.kib("Stack"), heap.kib("MSpan", "MCache", "BuckHashSys", "GCSys", "OtherSys"),
		float64(server.Goroutines), status(pid, "Threads"), descriptors(pid),
		status(v.Pid, "RssAnon"), status(v.Pid, "RssFile") + status(v.Pid, "RssShmem"), float64(v.HeapLive) / 1024, float64(v.Goroutines), status(v.Pid, "Threads"), descriptors(v.Pid),
		inodes(filepath.Join(s.node.Dir, "root")), inodes(s.node.State), float64(len(pins)), veths(), float64(strings.Count(string(mounts), "\n")),
		s.cgroups(), float64(len(testnode.Descendants(os.Getppid()))),
	}, nil
}

// status is a number of /proc/PID/status.
func status(pid int, field string) float64 {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(b)) {
		if k, v, _ := strings.Cut(line, ":"); k == field {
			n, _ := strconv.ParseFloat(strings.Fields(v)[0], 64)
			return n
		}
	}
	return 0
}

func descriptors(pid int) float64 {
	fds, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	return float64(len(fds))
}

// inodes counts the files below a directory, on its own file system.
func inodes(dir string) float64 {
	n := 0.0
	var top unix.Stat_t
	if unix.Stat(dir, &top) != nil {
		return 0
	}
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // files come and go while one counts
		}
		var st unix.Stat_t
		if d.IsDir() && (unix.Lstat(path, &st) != nil || st.Dev != top.Dev) {
			return filepath.SkipDir
		}
		n++
		return nil
	})
	return n
}

// settle waits, for a limited time, until the kernel has taken down the interfaces of the pods that were removed: it does so
// behind the removal of their network namespaces, of one after the other for the whole machine. All pods are removed while the
// workers rest.
func (s *soak) settle(ctx context.Context) {
	for began := time.Now(); veths() > 0 && time.Since(began) < 10*time.Second && ctx.Err() == nil; {
		time.Sleep(20 * time.Millisecond) // nobody tells of it
	}
}

func veths() (n float64) {
	links, _ := net.Interfaces()
	for _, l := range links {
		if strings.HasPrefix(l.Name, "veth") {
			n++
		}
	}
	return n
}

var longID = regexp.MustCompile(`^[0-9a-f]{64}$`)

// cgroups counts those of pods and containers in all hierarchies.
func (s *soak) cgroups() (n float64) {
	roots, _ := filepath.Glob("/sys/fs/cgroup/*" + s.cgroup)
	for _, root := range append(roots, "/sys/fs/cgroup"+s.cgroup) {
		_ = filepath.WalkDir(root, func(_ string, d fs.DirEntry, err error) error {
			if err == nil && longID.MatchString(d.Name()) {
				n++
			}
			return nil
		})
	}
	return n
}
