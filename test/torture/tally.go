package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/status"
)

// tally counts what was done.
type tally struct {
	steps, pods, containers, execs, pulls, rotations, refused    atomic.Int64
	users, oci, sessions, cut, attached, attachedBytes           atomic.Int64
	servers, starting, monitors, both, upgrades, fired, injected atomic.Int64
	lines, bytes, codes, lists, checks, empty, longest           atomic.Int64
	owed, checking                                               atomic.Int64 // ns in which nothing was killed: a call was late; a check
	points                                                       sync.Map     // fault points at which a program was killed
}

func (t *tally) figures() map[string]any {
	points := []string{}
	t.points.Range(func(name, _ any) bool { points = append(points, name.(string)); return true })
	slices.Sort(points)
	return map[string]any{
		"steps": t.steps.Load(), "pods": t.pods.Load(), "containers": t.containers.Load(), "execs": t.execs.Load(), "pulls": t.pulls.Load(),
		"user_namespaces": t.users.Load(), "oci_pods": t.oci.Load(), "exec_sessions": t.sessions.Load(), "exec_sessions_cut": t.cut.Load(), "attachments": t.attached.Load(),
		"attached_bytes": t.attachedBytes.Load(),
		"rotations":      t.rotations.Load(), "refused_starts": t.refused.Load(), "server_kills": t.servers.Load(),
		"server_kills_starting": t.starting.Load(), "monitor_kills": t.monitors.Load(), "both_at_once": t.both.Load(),
		"upgrades": t.upgrades.Load(), "kills_at_points": t.fired.Load(), "points": points, "errors_injected": t.injected.Load(),
		"log_lines": t.lines.Load(), "log_bytes": t.bytes.Load(), "exit_codes": t.codes.Load(), "list_checks": t.lists.Load(),
		"seconds_for_late_calls": t.owed.Load() / 1e9, "seconds_of_checks": t.checking.Load() / 1e9,
		"full_checks": t.checks.Load(), "empty_checks": t.empty.Load(), "longest_write_ms": float64(t.longest.Load()/1e4) / 100,
	}
}

// longest notes the longest write(2) of a container.
func (t *torture) longest(ns int64) {
	for old := t.tally.longest.Load(); ns > old && !t.tally.longest.CompareAndSwap(old, ns); old = t.tally.longest.Load() {
	}
}

// calls are those that are under way, and the errors that calls have got.
type calls struct {
	mu     sync.Mutex
	open   map[*call]bool
	errors map[string]int // by call and code
}

type call struct {
	what  string
	since time.Time
}

func (t *torture) begin(what string) *call {
	c := &call{what, time.Now()}
	t.tally.steps.Add(1)
	t.calls.mu.Lock()
	defer t.calls.mu.Unlock()
	if t.calls.open == nil {
		t.calls.open, t.calls.errors = map[*call]bool{}, map[string]int{}
	}
	t.calls.open[c] = true
	return c
}

func (t *torture) end(c *call) {
	t.calls.mu.Lock()
	defer t.calls.mu.Unlock()
	delete(t.calls.open, c)
}

func (t *torture) count(what string, err error) {
	t.calls.mu.Lock()
	defer t.calls.mu.Unlock()
	t.calls.errors[what+" "+status.Code(err).String()]++
}

// oldest is how long the call that has been repeated for the longest time is under way.
func (t *torture) oldest() time.Duration {
	t.calls.mu.Lock()
	defer t.calls.mu.Unlock()
	d := time.Duration(0)
	for c := range t.calls.open {
		d = max(d, time.Since(c.since))
	}
	return d
}

func (c *calls) table() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var lines []string
	for k, n := range c.errors {
		lines = append(lines, fmt.Sprintf("  %s: %d\n", k, n))
	}
	slices.Sort(lines)
	return "errors before calls were acknowledged:\n" + strings.Join(lines, "")
}

// trace notes a line in the run's log.
func (t *torture) trace(format string, args ...any) {
	t.logs.Lock()
	defer t.logs.Unlock()
	if t.log == nil {
		return
	}
	fmt.Fprintf(t.log, "%s %s\n", time.Now().UTC().Format("15:04:05.000000"), fmt.Sprintf(format, args...))
}

// fail ends the run.
func (t *torture) fail(format string, args ...any) {
	t.trace("FAIL "+format, args...)
	t.logs.Lock()
	defer t.logs.Unlock()
	if t.failure == nil {
		t.failure = fmt.Errorf(format, args...)
	}
	if t.stop != nil {
		t.stop()
	}
}

// keep copies what explains a failure, and says where.
func (t *torture) keep() string {
	dir, err := os.MkdirTemp(t.o.keep, fmt.Sprintf("torture-%d-", t.o.seed))
	if err != nil {
		return err.Error()
	}
	for _, pid := range []int{t.node.ServerPid(), t.monitorPid()} { // their goroutines tell in the logs where they are
		if pid > 0 {
			_ = unix.Kill(pid, unix.SIGQUIT)
		}
	}
	time.Sleep(time.Second) // for that to be written: there is no event for it
	root := filepath.Join(t.node.Dir, "root")
	sources := []string{t.node.Log(), t.node.Log() + ".old", filepath.Join(t.node.Dir, "torture.log"), filepath.Join(monitorDir, "monitor.log"),
		filepath.Join(root, "sandboxes"), filepath.Join(root, "containers"), filepath.Join(t.node.Dir, "tmp")}
	for _, s := range sources {
		if out, err := exec.Command("cp", "-a", s, dir).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "keep %s: %s", s, out)
		}
	}
	return dir
}

// load is the machine's load average over a minute.
func load() string {
	b, _ := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(b), " ")
	return first
}

// trim bounds the logs of a long run: the server is not running.
func (t *torture) trim() {
	const most = 16 << 20
	if st, err := os.Stat(t.node.Log()); err == nil && st.Size() > most {
		_ = os.Rename(t.node.Log(), t.node.Log()+".old")
	}
	t.logs.Lock()
	defer t.logs.Unlock()
	if st, err := t.log.Stat(); err == nil && st.Size() > most {
		_ = os.Rename(t.log.Name(), t.log.Name()+".old")
		if f, err := os.Create(t.log.Name()); err == nil {
			t.log.Close()
			t.log = f
		}
	}
}
