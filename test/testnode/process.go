package testnode

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a process of the node as /proc shows it.
type Process struct {
	Pid, Parent int
	Comm        string
	Cmdline     string
	Zombie      bool
}

func (p Process) String() string { return fmt.Sprintf("process %d %s (%s)", p.Pid, p.Comm, p.Cmdline) }

// Descendants lists the living processes below pid, in no order.
func Descendants(pid int) []Process {
	all := map[int]Process{}
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		if p, ok := readProcess(d); ok {
			all[p.Pid] = p
		}
	}
	var found []Process
	for _, p := range all {
		for up := p.Parent; up > 1; up = all[up].Parent {
			if up == pid {
				found = append(found, p)
				break
			}
		}
	}
	return found
}

func readProcess(dir string) (Process, bool) {
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return Process{}, false
	}
	// The command stands in parentheses and may hold any character: proc(5).
	open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	f := strings.Fields(string(stat[end+1:]))
	if open < 0 || end < 0 || len(f) < 2 {
		return Process{}, false
	}
	p := Process{Comm: string(stat[open+1 : end]), Zombie: f[0] == "Z"}
	p.Pid, _ = strconv.Atoi(filepath.Base(dir))
	p.Parent, _ = strconv.Atoi(f[1])
	cmdline, _ := os.ReadFile(dir + "/cmdline")
	p.Cmdline = strings.TrimSpace(strings.ReplaceAll(string(cmdline), "\x00", " "))
	return p, true
}

// endDescendants waits a moment for the processes below pid to end, then kills them and returns what they were. Those
// for which expected is true are asked with SIGTERM first, and are not returned if that ends them.
func endDescendants(pid int, expected func(Process) bool) []string {
	asked := map[int]bool{}
	for try := 0; try < 60; try++ {
		reap()
		living := 0
		for _, p := range Descendants(pid) {
			if p.Zombie || p.Pid == os.Getpid() {
				continue
			}
			living++
			if expected != nil && expected(p) && !asked[p.Pid] {
				asked[p.Pid] = true
				_ = unix.Kill(p.Pid, unix.SIGTERM)
			}
		}
		if living == 0 {
			return nil
		}
		time.Sleep(50 * time.Millisecond) // there is no event for the end of processes that are not our children
	}
	var left []string
	killed := map[int]bool{}
	for range 100 {
		living := 0
		for _, p := range Descendants(pid) {
			if p.Zombie || p.Pid == os.Getpid() {
				continue
			}
			living++
			if unix.Kill(p.Pid, unix.SIGKILL) == nil && !killed[p.Pid] {
				killed[p.Pid] = true
				left = append(left, p.String())
			}
		}
		reap()
		if living == 0 {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	return left
}

// reap collects the orphans that came to this process as a subreaper.
func reap() {
	for {
		if pid, err := unix.Wait4(-1, nil, unix.WNOHANG|unix.WALL, nil); err != nil || pid <= 0 {
			return
		}
	}
}
