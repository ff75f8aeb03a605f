package testnode

import (
	"bufio"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Snapshot is what can be left behind, seen from the namespaces of the caller: mounts, network namespaces, interfaces,
// netfilter rules, cgroups, shared memory segments, and directories that belong to container runtimes.
type Snapshot map[string]bool

// Take makes a snapshot.
func Take() Snapshot {
	s := Snapshot{}
	s.mounts()
	s.cgroups()
	s.lines("shared memory", "/proc/sysvipc/shm", 2)
	if links, err := net.Interfaces(); err == nil {
		for _, l := range links {
			s["interface "+l.Name] = true
		}
	}
	pins, _ := filepath.Glob("/run/netns/*")
	for _, p := range pins {
		s["netns "+p] = true
	}
	if out, err := exec.Command("nft", "--stateless", "list", "ruleset").Output(); err == nil {
		table, chain := "", ""
		for _, l := range strings.Split(string(out), "\n") {
			switch f := strings.TrimSpace(l); {
			case strings.HasPrefix(l, "table "):
				table = strings.TrimSuffix(f, " {")
			case strings.HasSuffix(f, "{"):
				chain = strings.TrimSuffix(f, " {")
			case f != "" && f != "}":
				s["nft "+table+" "+chain+": "+f] = true
			}
		}
	}
	for _, dir := range []string{"/etc/cni", "/opt/cni", "/var/lib/cni", "/etc/cri-server", "/var/lib/cri-server",
		"/run/cri-server", "/var/log/pods", "/var/log/containers", "/run/netns"} {
		if _, err := os.Lstat(dir); err == nil {
			s["directory "+dir] = true
		}
	}
	return s
}

// Added lists, sorted, what after has and s has not, but for cgroups in which only processes of others are now: cgroups are
// the whole machine's, and other runtimes may be at work.
func (s Snapshot) Added(after Snapshot) []string {
	var added []string
	var own map[int]bool
	for k := range after {
		if s[k] {
			continue
		}
		if dir, ok := strings.CutPrefix(k, "cgroup "); ok {
			if own == nil {
				own = family()
			}
			if ofOthers(dir, own) {
				continue
			}
		}
		added = append(added, k)
	}
	sort.Strings(added)
	return added
}

// Still lists what is in both, of two looks one after the other: what others make and remove meanwhile is in one of them.
func Still(before, now []string) []string {
	return slices.DeleteFunc(now, func(k string) bool { return !slices.Contains(before, k) })
}

// family are the processes of this run: with package testns around it, all that it has ever started.
func family() map[int]bool {
	own := map[int]bool{os.Getpid(): true}
	for _, p := range Descendants(os.Getppid()) {
		own[p.Pid] = true
	}
	return own
}

// ofOthers tells whether there are processes in or below a cgroup, and none of them is own.
func ofOthers(dir string, own map[int]bool) bool {
	others, mine := false, false
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil //nolint:nilerr // as in cgroups
		}
		b, _ := os.ReadFile(path + "/cgroup.procs")
		for _, f := range strings.Fields(string(b)) {
			pid, _ := strconv.Atoi(f)
			others, mine = others || !own[pid], mine || own[pid]
		}
		return nil
	})
	return others && !mine
}

func (s Snapshot) mounts() {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return
	}
	for _, l := range strings.Split(string(b), "\n") {
		if f := strings.Fields(l); len(f) > 5 {
			s["mount "+f[4]+" ("+f[3]+")"] = true
		}
	}
}

// ours matches cgroups of pods and containers, of any runtime.
var ours = regexp.MustCompile(`/(cri-|k8s\.io|kubepods)|/[^/]*[0-9a-f]{64}`)

func (s Snapshot) cgroups() {
	_ = filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil //nolint:nilerr // cgroups come and go while one looks
		}
		if filepath.Dir(path) == "/sys/fs/cgroup" && d.Name() == "unified" && !IsCgroup(path) {
			return filepath.SkipDir // see HideUnified
		}
		// Unit tests and nodes that run at the same time have their own; package testns and Node.Stop look after them.
		if strings.HasPrefix(d.Name(), "cri-test-") || strings.HasPrefix(d.Name(), "cri-node-") {
			return filepath.SkipDir
		}
		if !ours.MatchString(path) {
			return nil // the machine's own: sessions, units and jobs of others come and go
		}
		s["cgroup "+path] = true
		return nil
	})
}

// IsCgroup tells whether a directory is one of a cgroup hierarchy.
func IsCgroup(dir string) bool {
	var st unix.Statfs_t
	return unix.Statfs(dir, &st) == nil && (st.Type == unix.CGROUP_SUPER_MAGIC || st.Type == unix.CGROUP2_SUPER_MAGIC)
}

func (s Snapshot) lines(kind, file string, fields int) {
	f, err := os.Open(file)
	if err != nil {
		return
	}
	defer f.Close()
	for l := bufio.NewScanner(f); l.Scan(); {
		if w := strings.Fields(l.Text()); len(w) >= fields {
			s[kind+" "+strings.Join(w[:fields], " ")] = true
		}
	}
}

// Find lists the paths below dirs whose name holds one of the ids: records, snapshots and sockets of removed objects.
func Find(ids []string, dirs ...string) []string {
	var found []string
	for _, dir := range dirs {
		_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return nil //nolint:nilerr // what vanishes is no leak
			}
			for _, id := range ids {
				if strings.Contains(d.Name(), id) {
					found = append(found, "file "+path)
					return nil
				}
			}
			return nil
		})
	}
	return found
}

// Lines is a list for people: one a line, the first ones if they are many.
func Lines(list []string) string {
	const most = 30
	if len(list) > most {
		list = append(list[:most:most], fmt.Sprintf("and %d more", len(list)-most))
	}
	return strings.Join(list, "\n\t")
}
