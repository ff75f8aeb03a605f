package inspect

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// namespaceTypes are the links of /proc/PID/ns that tell something; pid_for_children and time_for_children do not.
var namespaceTypes = []string{"cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"}

// Namespaces reads the namespaces of pid. pause is the pod's pause, 0 for pause itself or when it has ended. pinned maps
// types to the paths where namespaces are pinned; may be nil.
func Namespaces(pid, pause int, pinned map[string]string) ([]Namespace, error) {
	own, err := namespaceInodes("/proc", strconv.Itoa(pid))
	if err != nil {
		return nil, fmt.Errorf("namespaces of %d: %w", pid, err)
	}
	// The server itself stands for the host: it runs in the namespaces that pods with NODE get.
	host, err := namespaceInodes("/proc", "self")
	if err != nil {
		return nil, fmt.Errorf("namespaces: %w", err)
	}
	var pod map[string]uint64
	if pause > 0 && pause != pid {
		pod, _ = namespaceInodes("/proc", strconv.Itoa(pause)) // it may have ended
	}
	return compare(own, pod, host, pinned), nil
}

func compare(own, pod, host map[string]uint64, pinned map[string]string) []Namespace {
	var list []Namespace
	for _, t := range namespaceTypes {
		inode, ok := own[t]
		if !ok {
			continue // the kernel was built without it
		}
		n := Namespace{Type: t, Inode: inode, Shared: "own", Path: pinned[t]}
		switch inode {
		case host[t]:
			n.Shared, n.Path = "host", ""
		case pod[t]:
			n.Shared = "pod"
		}
		list = append(list, n)
	}
	return list
}

// namespaceInodes reads the links of one process: "net:[4026531840]".
func namespaceInodes(proc, pid string) (map[string]uint64, error) {
	inodes := map[string]uint64{}
	for _, t := range namespaceTypes {
		link, err := os.Readlink(filepath.Join(proc, pid, "ns", t))
		if os.IsNotExist(err) {
			if _, serr := os.Stat(filepath.Join(proc, pid, "ns")); serr == nil {
				continue
			}
		}
		if err != nil {
			return nil, err
		}
		text, ok := strings.CutPrefix(link, t+":[")
		n, perr := strconv.ParseUint(strings.TrimSuffix(text, "]"), 10, 64)
		if !ok || perr != nil {
			return nil, fmt.Errorf("odd link %q", link)
		}
		inodes[t] = n
	}
	return inodes, nil
}

// Processes is the tree of the processes in the given cgroup directories and below them (cgroup.procs). Processes whose
// parents are outside are its roots, in the order of their pids.
func Processes(dirs ...string) []Process {
	var pids []int
	for _, d := range dirs {
		_ = filepath.WalkDir(d, func(path string, e os.DirEntry, err error) error {
			if err == nil && e.Name() == "cgroup.procs" {
				pids = append(pids, readPids(path)...)
			}
			return nil // what is gone meanwhile is left out
		})
	}
	return tree("/proc", pids)
}

func readPids(path string) []int {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	var pids []int
	for _, f := range strings.Fields(string(b)) {
		if n, err := strconv.Atoi(f); err == nil && n > 0 { // 0: not in our pid namespace
			pids = append(pids, n)
		}
	}
	return pids
}

func tree(proc string, pids []int) []Process {
	slices.Sort(pids)
	byPid := map[int]Process{}
	children := map[int][]int{}
	var order []int
	for _, pid := range slices.Compact(pids) {
		p, parent, err := readProcess(proc, pid)
		if err != nil {
			continue
		}
		byPid[pid] = p
		children[parent] = append(children[parent], pid)
		order = append(order, pid)
	}
	var build func(pid int) Process
	build = func(pid int) Process {
		p := byPid[pid]
		for _, c := range children[pid] {
			p.Children = append(p.Children, build(c))
		}
		return p
	}
	var roots []Process
	for parent, list := range children {
		if _, inside := byPid[parent]; inside {
			continue
		}
		for _, pid := range list {
			roots = append(roots, build(pid))
		}
	}
	slices.SortFunc(roots, func(a, b Process) int { return slices.Index(order, a.Pid) - slices.Index(order, b.Pid) })
	return roots
}

// readProcess reads /proc/PID/status and cmdline (proc_pid_status(5)).
func readProcess(proc string, pid int) (p Process, parent int, err error) {
	dir := filepath.Join(proc, strconv.Itoa(pid))
	b, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return p, 0, err
	}
	p.Pid, p.PidInside = pid, pid
	name := ""
	for line := range strings.Lines(string(b)) {
		key, value, _ := strings.Cut(line, ":")
		f := strings.Fields(value)
		if len(f) == 0 {
			continue
		}
		n, _ := strconv.Atoi(f[0])
		switch key {
		case "Name":
			name = strings.TrimSpace(value)
		case "State":
			p.State = f[0]
		case "PPid":
			parent = n
		case "Uid":
			p.UID = n
		case "NSpid":
			if inside, err := strconv.Atoi(f[len(f)-1]); err == nil {
				p.PidInside = inside
			}
		case "Threads":
			p.Threads = n
		case "VmRSS":
			p.RSS = int64(n) << 10
		}
	}
	cmd, err := os.ReadFile(filepath.Join(dir, "cmdline"))
	if err != nil {
		return p, 0, err
	}
	if p.Command = printable(cmd); p.Command == "" {
		p.Command = "[" + printable([]byte(name)) + "]"
	}
	return p, parent, nil
}

// printable makes a command line, which the container chooses, safe for a terminal.
func printable(cmdline []byte) string {
	const most = 300
	s := string(bytes.ReplaceAll(bytes.TrimRight(cmdline, "\x00"), []byte{0}, []byte(" ")))
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "…"
	}
	return s
}

// Bridge is the bridge that a host interface is a port of, "" if none (Linux's /sys/class/net/IF/master).
func Bridge(hostInterface string) string {
	if hostInterface == "" || strings.ContainsAny(hostInterface, "/") {
		return ""
	}
	link, err := os.Readlink(filepath.Join("/sys/class/net", hostInterface, "master"))
	if err != nil {
		return ""
	}
	return filepath.Base(link)
}
