package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/test/testnode"
)

var longID = regexp.MustCompile(`[0-9a-f]{64}`)

// holder tells whether an object of that id has a cgroup and processes.
func (s *truth) holder(id string) bool { return s.ready[id] != nil || s.live[id] != nil }

// cgroups: one for each ready pod and living container in each hierarchy, and no others.
func (t *torture) cgroups(s *truth) (wrong []string) {
	roots, _ := filepath.Glob("/sys/fs/cgroup/*" + t.cgroup())
	roots = append(roots, "/sys/fs/cgroup"+t.cgroup())
	found := map[string]int{}
	for _, root := range roots {
		if !testnode.IsCgroup(root) { // crun's, in the tmpfs over a hidden cgroup2
			continue
		}
		_ = filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				if id := longID.FindString(filepath.Base(path)); id != "" {
					found[id]++
					if !s.holder(id) {
						wrong = append(wrong, "a cgroup of nobody: "+path)
					}
				}
			}
			return nil
		})
	}
	for _, id := range s.holders() {
		if found[id] == 0 {
			wrong = append(wrong, "no cgroup of "+shortID(id))
		}
	}
	return wrong
}

func (s *truth) holders() []string {
	var ids []string
	for id := range s.ready {
		ids = append(ids, id)
	}
	for id := range s.live {
		ids = append(ids, id)
	}
	return ids
}

// processes: each one of the node is a program of the run, or in the cgroup of a living object; each living object has its
// process, and it is the same one as ever.
func (t *torture) processes(s *truth) (wrong []string) {
	found := map[string][]int{}
	monitors, own, forkers := 0, t.monitorPid(), 0
	for _, p := range testnode.Descendants(os.Getppid()) {
		switch {
		case p.Pid == os.Getpid() || p.Pid == t.node.ServerPid():
			continue
		case p.Zombie && ofWriter(p.Parent): // left by an exec session to the container's first process, which reaps nobody
			continue
		case p.Zombie:
			wrong = append(wrong, "a zombie: "+p.String())
			continue
		case p.Comm == "cri-monitor" && strings.Contains(p.Cmdline, "--socket"):
			monitors++
			continue
		}
		id := ""
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", p.Pid)); err == nil {
			id = longID.FindString(string(b))
		}
		if p.Comm == "cri-stub" && id == "" && p.Parent == own { // forks the others for cri-monitor
			forkers++
			continue
		}
		if !s.holder(id) {
			wrong = append(wrong, fmt.Sprintf("a process of nobody: %v, in the cgroup of %q", p, shortID(id)))
		}
		found[id] = append(found[id], p.Pid)
	}
	if monitors != 1 || forkers > 1 {
		wrong = append(wrong, fmt.Sprintf("%d processes are cri-monitor, %d fork for it", monitors, forkers))
	}
	for _, id := range s.holders() {
		if len(found[id]) == 0 {
			wrong = append(wrong, "no process of "+shortID(id))
		}
	}
	for id, c := range s.live {
		if c.state == alive {
			wrong = append(wrong, c.identity(id, found[id])...)
		}
	}
	return wrong
}

// ofWriter tells whether a process is the program of a container.
func ofWriter(pid int) bool {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return strings.HasPrefix(string(b), "/writer\x00")
}

// identity: the program of a container is the one that it was at the first look.
func (c *container) identity(id string, pids []int) []string {
	for _, pid := range pids {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if !strings.Contains(string(b), strconv.FormatUint(c.seed, 10)) {
			continue
		}
		stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		_, rest, _ := strings.Cut(string(stat), ") ")
		f := strings.Fields(rest)
		if len(f) < 20 {
			continue
		}
		if c.pid == 0 {
			c.pid, c.started = pid, f[19]
		}
		if c.pid != pid || c.started != f[19] {
			return []string{fmt.Sprintf("container %s is process %d, begun at %s; it was %d, %s", shortID(id), pid, f[19], c.pid, c.started)}
		}
		return nil
	}
	return []string{fmt.Sprintf("container %s: its program is not among its processes %v", shortID(id), pids)}
}

// networks: pins, interfaces, addresses, leases, cached results and netfilter rules are those of the ready pods that have
// a network of their own.
func (t *torture) networks(s *truth) (wrong []string) {
	own, veths := map[string]*pod{}, 0
	for id, p := range s.ready {
		if !p.hostNetwork() {
			own[id] = p
		}
	}
	if links, err := net.Interfaces(); err == nil {
		for _, l := range links {
			if strings.HasPrefix(l.Name, "veth") {
				veths++
			}
		}
	}
	if veths != len(own) {
		wrong = append(wrong, fmt.Sprintf("%d veth interfaces for %d pods", veths, len(own)))
	}
	pins, _ := filepath.Glob("/run/netns/*")
	wrong = append(wrong, compare("network namespace", ids(pins), own)...)
	root := filepath.Join(t.node.Dir, "root")
	results, _ := filepath.Glob(root + "/cni/results/*")
	wrong = append(wrong, compare("CNI result", ids(results), own)...)

	var leased []string
	leases, _ := filepath.Glob(root + "/networks/cri/[0-9]*")
	for _, l := range leases {
		b, _ := os.ReadFile(l)
		id := longID.FindString(string(b))
		leased = append(leased, id)
		if p := own[id]; p != nil && p.ip != filepath.Base(l) {
			wrong = append(wrong, fmt.Sprintf("pod %s has the address %s and leases %s", shortID(id), p.ip, filepath.Base(l)))
		}
	}
	wrong = append(wrong, compare("lease", leased, own)...)
	if out, err := exec.Command("nft", "list", "ruleset").Output(); err == nil {
		wrong = append(wrong, compare("netfilter element", longID.FindAllString(string(out), -1), own)...)
	}
	for id, p := range own {
		wrong = append(wrong, t.namespace(id, p)...)
	}
	return wrong
}

// namespace: the pin is the namespace in which pause is, and the address is there.
func (t *torture) namespace(id string, p *pod) []string {
	procs, _ := filepath.Glob("/sys/fs/cgroup/pids" + t.cgroup() + "/" + id + "/cgroup.procs")
	procs2, _ := filepath.Glob("/sys/fs/cgroup" + t.cgroup() + "/" + id + "/cgroup.procs")
	for _, file := range append(procs, procs2...) {
		b, _ := os.ReadFile(file)
		pid, _, _ := strings.Cut(string(b), "\n")
		link, err := os.Readlink("/proc/" + pid + "/ns/net")
		if err != nil {
			return []string{fmt.Sprintf("pause of pod %s: %v", shortID(id), err)}
		}
		var st unix.Stat_t
		if err := unix.Stat("/run/netns/cri-"+id, &st); err != nil || link != fmt.Sprintf("net:[%d]", st.Ino) {
			return []string{fmt.Sprintf("pod %s: pause is in %s, pinned is %d, %v", shortID(id), link, st.Ino, err)}
		}
		trie, _ := os.ReadFile("/proc/" + pid + "/net/fib_trie")
		if !strings.Contains(string(trie), "-- "+p.ip+"\n") {
			return []string{fmt.Sprintf("pod %s: the address %s is not in its namespace", shortID(id), p.ip)}
		}
		return nil
	}
	return []string{"pod " + shortID(id) + " has no pause"}
}

// mounts: in the node's namespace each mount that was not there before is of a pod that is there.
func (t *torture) mounts(s *truth) (wrong []string) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return []string{err.Error()}
	}
	for line := range strings.Lines(string(b)) {
		id := longID.FindString(line)
		if id != "" && s.ready[id] == nil && s.live[id] == nil {
			wrong = append(wrong, "a mount of nobody: "+line)
		}
	}
	if n := strings.Count(string(b), "\n") - longIDs(string(b)); t.base.mounts != 0 && n != t.base.mounts {
		wrong = append(wrong, fmt.Sprintf("%d mounts that belong to no pod, %d before", n, t.base.mounts))
	}
	return wrong
}

// longIDs counts the lines that name an object.
func longIDs(text string) (n int) {
	for line := range strings.Lines(text) {
		if longID.MatchString(line) {
			n++
		}
	}
	return n
}

// mostSpares is how many files of deleted records are kept for new ones (pkg/records), in each directory.
const mostSpares = 512

func isSpare(name string) bool { return strings.HasPrefix(filepath.Base(name), ".tmp-spare-") }

// records: one for each object, and a writable layer for each container.
func (t *torture) records(s *truth) (wrong []string) {
	root := filepath.Join(t.node.Dir, "root")
	pods, _ := filepath.Glob(root + "/sandboxes/*")
	containers, _ := filepath.Glob(root + "/containers/*")
	layers, _ := filepath.Glob(root + "/images/snapshots/*")
	for _, names := range []*[]string{&pods, &containers} {
		all := len(*names)
		*names = slices.DeleteFunc(*names, isSpare)
		if n := all - len(*names); n > mostSpares {
			wrong = append(wrong, fmt.Sprintf("%d spare files among the records", n))
		}
	}
	wrong = append(wrong, compare("record", ids(pods), s.pods)...)
	wrong = append(wrong, compare("record", ids(containers), s.containers)...)
	return append(wrong, compare("writable layer", ids(layers), s.containers)...)
}

// strays: files and directories of objects that are no more.
func (t *torture) strays(s *truth) (wrong []string) {
	for _, dir := range []string{"/run/cri-server", filepath.Join(t.node.Dir, "root")} {
		_ = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err != nil {
				return nil //nolint:nilerr // it has just gone
			}
			// Of images: layers, blobs, and mount points that containers have in common.
			if strings.HasSuffix(path, "/layers") || strings.HasSuffix(path, "/blobs") || strings.HasSuffix(path, "/images/targets") || filepath.Base(filepath.Dir(path)) == "snapshots" {
				return filepath.SkipDir
			}
			if id := longID.FindString(d.Name()); id != "" && s.pods[id] == nil && s.containers[id] == nil {
				wrong = append(wrong, "a file of nobody: "+path)
			}
			return nil
		})
	}
	for _, dir := range []string{"ingest", "trash", "open"} {
		left, _ := os.ReadDir(filepath.Join(t.node.Dir, "root", "images", dir))
		for _, e := range left {
			wrong = append(wrong, "left of an image: "+dir+"/"+e.Name())
		}
	}
	return wrong
}

// ids are the object ids in names.
func ids(names []string) (found []string) {
	for _, n := range names {
		id := longID.FindString(filepath.Base(n))
		if id == "" {
			id = filepath.Base(n)
		}
		found = append(found, id)
	}
	return found
}

// compare wants what was found to be of the objects, of each at least one.
func compare[T any](what string, found []string, objects map[string]*T) (wrong []string) {
	for _, id := range found {
		if objects[id] == nil {
			wrong = append(wrong, fmt.Sprintf("a %s of nobody: %s", what, shortID(id)))
		}
	}
	for id := range objects {
		if !slices.Contains(found, id) {
			wrong = append(wrong, fmt.Sprintf("no %s of %s", what, shortID(id)))
		}
	}
	return slices.Compact(wrong)
}
