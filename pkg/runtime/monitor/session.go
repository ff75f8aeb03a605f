package monitor

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

// settleTime is how long killed processes may take to leave their cgroup.
const settleTime = 5 * time.Second

// sessionCgroup is the cgroup of one exec session, "exec-N" below the container's, in one hierarchy. It has no limits
// and no controllers of its own: what it uses counts for the container.
type sessionCgroup struct {
	n       uint64
	dir     string
	unified bool
	ended   bool // its session has; guarded by execSet.mu
}

// newSessionCgroup makes the cgroup of session n and returns where the session's process belongs: there, and in the
// container's cgroup in all other hierarchies. It keeps of.
func newSessionCgroup(of *engine.Cgroup, n uint64) (*engine.Cgroup, *sessionCgroup, error) {
	parent, hierarchy := sessionParent(of)
	if parent == "" {
		return nil, nil, fmt.Errorf("no cgroup2, freezer or pids hierarchy")
	}
	s := &sessionCgroup{n: n, dir: filepath.Join(parent, sessionPrefix+strconv.FormatUint(n, 10)), unified: hierarchy == ""}
	if s.unified {
		of.Unified = s.dir
	} else {
		of.V1[hierarchy] = s.dir
	}
	if err := os.Mkdir(s.dir, 0o755); err != nil && !os.IsExist(err) {
		return nil, nil, err
	}
	return of, s, nil
}

const sessionPrefix = "exec-"

// sessionParent is the directory below which sessions of a container have their cgroups, and its v1 hierarchy.
func sessionParent(of *engine.Cgroup) (dir, hierarchy string) {
	if of.Unified != "" {
		return of.Unified, ""
	}
	for _, h := range []string{"freezer", "pids"} {
		if dir := of.V1[h]; dir != "" {
			return dir, h
		}
	}
	return "", ""
}

// clientNumbers is where the numbers begin that clients choose, at random; those below are the server's.
const clientNumbers = 1 << 32

// begin gives a session its number: the one that its client has chosen, if it may have that.
func (e *execSet) begin(x *session, chosen uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	taken := e.live[chosen] != nil || slices.ContainsFunc(e.dirs, func(cg *sessionCgroup) bool { return cg.n == chosen })
	if x.n = chosen; chosen < clientNumbers || taken {
		e.seq++
		x.n = e.seq
	}
	e.enter(x)
}

// used keeps the server's own numbers apart from those of a former process.
func (e *execSet) used(n uint64) {
	if n < clientNumbers {
		e.seq = max(e.seq, n)
	}
}

// find takes over the cgroups of sessions that a former process has made. They count as ended, until resume says
// otherwise.
func (e *execSet) find(of *engine.Cgroup) {
	dir, hierarchy := sessionParent(of)
	if dir == "" {
		return
	}
	entries, _ := os.ReadDir(dir)
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, entry := range entries {
		n, err := strconv.ParseUint(strings.TrimPrefix(entry.Name(), sessionPrefix), 10, 64)
		if err != nil || !strings.HasPrefix(entry.Name(), sessionPrefix) {
			continue
		}
		e.used(n)
		e.dirs = append(e.dirs, &sessionCgroup{n: n, dir: filepath.Join(dir, entry.Name()), unified: hierarchy == "", ended: true})
	}
}

// resume goes on with a session of a former process, whose cgroup find has found.
func (e *execSet) resume(x *session) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.used(x.n)
	e.enter(x)
	for _, cg := range e.dirs {
		if cg.n == x.n {
			cg.ended, x.cg = false, cg
		}
	}
}

// kill ends every process in the cgroup, and does not return before they have left it, or settleTime is over.
func (s *sessionCgroup) kill() error {
	if s.unified {
		err := os.WriteFile(filepath.Join(s.dir, "cgroup.kill"), []byte("1"), 0) // Linux 5.14
		if err == nil {
			return s.emptySoon(nil)
		}
	}
	return s.emptySoon(s.signalAll)
}

// emptySoon waits until the cgroup has no process, calling again between two looks.
func (s *sessionCgroup) emptySoon(again func()) error {
	deadline := time.Now().Add(settleTime)
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		if again != nil {
			again()
		}
		b, err := os.ReadFile(filepath.Join(s.dir, "cgroup.procs"))
		if err != nil || len(bytes.TrimSpace(b)) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("processes do not leave %s: %s", s.dir, strings.Join(strings.Fields(string(b)), " "))
		}
		time.Sleep(wait)
	}
}

// signalAll sends SIGKILL to every process there is. Where there is a freezer the processes stand still meanwhile, so
// that none forks away; elsewhere the next round finds them.
func (s *sessionCgroup) signalAll() {
	freezer := filepath.Join(s.dir, "freezer.state")
	_ = os.WriteFile(freezer, []byte("FROZEN"), 0)
	b, _ := os.ReadFile(filepath.Join(s.dir, "cgroup.procs"))
	for _, field := range strings.Fields(string(b)) {
		if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
			signalIn(pid, s.dir)
		}
	}
	_ = os.WriteFile(freezer, []byte("THAWED"), 0)
}

// signalIn kills pid if it is still in the cgroup dir once its pidfd is open: then the number can't be another's.
func signalIn(pid int, dir string) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	b, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	for _, field := range strings.Fields(string(b)) {
		if field == strconv.Itoa(pid) {
			_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
			return
		}
	}
}

// remove removes the cgroup if it is empty.
func (s *sessionCgroup) remove() error {
	if err := unix.Rmdir(s.dir); err != nil && err != unix.ENOENT {
		return err
	}
	return nil
}

// removeSoon removes the cgroup once its last processes have left it.
func (s *sessionCgroup) removeSoon() error {
	_ = s.emptySoon(s.signalAll)
	return s.remove()
}

// killTree ends p and its descendants, as far as they are still its descendants: a daemon that has detached itself
// escapes. It serves the oci engine, where the runtime decides about cgroups.
func killTree(p engine.Process) {
	for round := 0; round < 10; round++ {
		tree := descendants(p.Pid(), nil)
		// A process that was reaped has no descendants: those found are another's, who has got the pid since.
		if p.Signal(unix.SIGKILL) != nil || len(tree) == 0 {
			return
		}
		for _, pid := range tree {
			if fd, err := unix.PidfdOpen(pid, 0); err == nil {
				_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
				unix.Close(fd)
			}
		}
	}
}

// descendants lists the processes below pid; see proc_pid_task_tid_children(5).
func descendants(pid int, into []int) []int {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, name := range tasks {
		b, _ := os.ReadFile(name)
		for _, field := range strings.Fields(string(b)) {
			if child, err := strconv.Atoi(field); err == nil {
				into = descendants(child, append(into, child))
			}
		}
	}
	return into
}
