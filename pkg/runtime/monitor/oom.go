package monitor

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

// oomKills counts the processes that the kernel has killed in cg for want of memory. False when no file tells.
//
// The counters are the "oom_kill" lines of memory.events.local (v2, Linux 5.2) or memory.events, and of
// memory.oom_control (v1, Linux 4.13). The kernel counts before it sends the signal, so that a reading taken after the
// death of the victim has it. A hybrid host has both files for one cgroup; only one of them has the controller.
func oomKills(cg *engine.Cgroup) (uint64, bool) {
	if cg == nil {
		return 0, false
	}
	var files []string
	// crun with --systemd-cgroup has the container in a cgroup of that name below its scope, and no upward count is read.
	for _, sub := range []string{"container", ""} {
		if cg.Unified != "" {
			dir := filepath.Join(cg.Unified, sub)
			files = append(files, filepath.Join(dir, "memory.events.local"), filepath.Join(dir, "memory.events"))
		}
		if dir := cg.V1["memory"]; dir != "" {
			files = append(files, filepath.Join(dir, sub, "memory.oom_control"))
		}
	}
	for _, name := range files {
		b, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		if n, ok := counter(b, "oom_kill"); ok {
			return n, true
		}
	}
	return 0, false
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
