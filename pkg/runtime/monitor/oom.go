package monitor

import (
	"bytes"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// oomKills counts the processes that the kernel has killed in the container's cgroup for want of memory. False when no file
// tells.
//
// The counters are the "oom_kill" lines of memory.events.local (v2, Linux 5.2) or memory.events, and of
// memory.oom_control (v1, Linux 4.13). The kernel counts before it sends the signal, so that a reading taken after the
// death of the victim has it. A hybrid host has both hierarchies for one cgroup; the controller is in one of them, and
// where v1 has one of its name, in that.
func (c *container) oomKills() (uint64, bool) {
	v1, unified := c.oom.Dir("memory"), c.oom.Dir("")
	subs := []string{""}
	if c.oci != nil {
		// crun with --systemd-cgroup has the container in a cgroup of that name below its scope, and no upward count is read.
		subs = []string{"/container", ""}
	}
	for _, sub := range subs {
		if v1 != "" {
			if n, ok := readCounter(v1 + sub + "/memory.oom_control"); ok {
				return n, true
			}
		}
		if unified != "" {
			for _, file := range []string{"/memory.events.local", "/memory.events"} {
				if n, ok := readCounter(unified + sub + file); ok {
					return n, true
				}
			}
		}
	}
	return 0, false
}

// readCounter reads the file's "oom_kill". Without package os: two such files are read for each container, and Go's poller has
// no use for them.
func readCounter(name string) (uint64, bool) {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, false
	}
	defer unix.Close(fd)
	var b [1024]byte // of less than 200; the kernel gives all of it at once
	n, err := unix.Read(fd, b[:])
	for err == unix.EINTR {
		n, err = unix.Read(fd, b[:])
	}
	if err != nil {
		return 0, false
	}
	return counter(b[:n], "oom_kill")
}

// counter finds the line "key value" in a flat keyed cgroup file.
func counter(file []byte, key string) (uint64, bool) {
	for line := range bytes.Lines(file) {
		if k, v, ok := strings.Cut(strings.TrimSpace(string(line)), " "); ok && k == key {
			n, err := strconv.ParseUint(v, 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}

// ownOOMScoreAdj reads this process's oom_score_adj; see proc_pid_oom_score_adj(5).
func ownOOMScoreAdj() int {
	b, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return 0
	}
	n, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return n
}
