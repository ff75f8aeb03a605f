package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/monitor"
)

// TestParallel takes a hundred containers through their lives at once.
func TestParallel(t *testing.T) {
	n := newNode(t)
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			id := fmt.Sprintf("c%d", i)
			req := n.request(id, fmt.Sprintf("echo %d; read x; exit %d", i, i))
			req.Stdin, req.StdinOnce = true, true
			if _, err := n.Create(t.Context(), req); err != nil {
				t.Error(err)
				return
			}
			if _, err := n.Start(t.Context(), id); err != nil {
				t.Error(err)
				return
			}
			x, err := n.Exec(t.Context(), &monitor.ExecRequest{ID: id, Process: &specs.Process{Args: []string{"/bin/sh", "-c", "exit 9"}, Cwd: "/"}})
			if err != nil {
				t.Error(err)
				return
			}
			if code, err := x.Wait(t.Context()); code != 9 || err != nil {
				t.Errorf("exec: %d %v", code, err)
			}
			x.Close()
			in, w, _ := os.Pipe()
			a, err := n.Attach(t.Context(), &monitor.AttachRequest{ID: id, Stdin: in})
			in.Close()
			w.Close()
			if err != nil {
				t.Error(err)
				return
			}
			defer a.Close()
			if st, err := n.Wait(t.Context(), id); err != nil || st.ExitCode != i {
				t.Errorf("%+v %v", st, err)
			}
			if b, _ := os.ReadFile(filepath.Join(n.dir, id+".log")); !bytes.HasSuffix(b, []byte(fmt.Sprintf(" stdout F %d\n", i))) {
				t.Errorf("log %q", b)
			}
			if err := n.Delete(t.Context(), id); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// TestLogExact writes 225 MB as fast as it goes, while the log is rotated every few milliseconds.
func TestLogExact(t *testing.T) {
	n := newNode(t)
	dir := filepath.Join("/run", "logs") // a tmpfs, since this is about bytes, not about a disk
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	const lines, rounds = 250_000, 9 // of 100 bytes, numbered within a round
	var data bytes.Buffer
	for i := range lines {
		fmt.Fprintf(&data, "%08d%91s\n", i, "")
	}
	if err := os.WriteFile(filepath.Join(n.layer, "data"), data.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	req := n.request("c", "cat"+strings.Repeat(" /data", rounds))
	req.LogDir = dir
	n.run(req)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		n.stopped("c")
	}()
	r := exactReader{t: t, round: lines}
	begin := time.Now()
	for i, running := 0, true; running; i++ {
		select {
		case <-stopped:
			running = false
		case <-time.After(3 * time.Millisecond):
		}
		old := filepath.Join(dir, fmt.Sprintf("old%d", i))
		if err := os.Rename(filepath.Join(dir, "c.log"), old); err != nil {
			t.Fatal(err)
		}
		if err := n.ReopenLog(t.Context(), "c"); err != nil {
			t.Fatal(err)
		}
		r.file(old)
	}
	r.file(filepath.Join(dir, "c.log"))
	t.Logf("%d bytes in %v", r.bytes, time.Since(begin))
	if r.bytes != lines*rounds*100 {
		t.Errorf("%d bytes of output", r.bytes)
	}
}

// exactReader checks that the files hold consecutive lines.
type exactReader struct {
	t     *testing.T
	round int
	next  int
	bytes int
	part  []byte
}

func (r *exactReader) file(name string) {
	r.t.Helper()
	f, err := os.Open(name)
	if err != nil {
		r.t.Fatal(err)
	}
	defer os.Remove(name)
	defer f.Close()
	in := bufio.NewReaderSize(f, 1<<20)
	for {
		line, err := in.ReadSlice('\n')
		if err == io.EOF && len(line) == 0 {
			return
		}
		i := bytes.Index(line, []byte(" stdout "))
		if err != nil || i < 0 {
			r.t.Fatalf("%s: record %.60q: %v", name, line, err)
		}
		full := line[i+8] == 'F'
		r.part = append(r.part, line[i+10:len(line)-1]...)
		if !full {
			continue
		}
		if want := fmt.Sprintf("%08d%91s", r.next, ""); string(r.part) != want {
			r.t.Fatalf("%s: %.120q instead of %d", name, r.part, r.next)
		}
		r.next = (r.next + 1) % r.round
		r.bytes += len(r.part) + 1
		r.part = r.part[:0]
	}
}

// TestExecTree kills a session with all that came of it: daemons included, the container not. In whatever way the session's
// own process has ended, also by what the client's end leads to, its daemons stay only if the client says so.
func TestExecTree(t *testing.T) {
	ends := map[string]struct {
		tail     string // of the script
		terminal bool
		end      func(*monitor.Exec) error
		code     int // -1: nobody waits for it
		left     int
	}{
		"kill":           {tail: "sleep 1000", end: (*monitor.Exec).Kill, code: 137},
		"close":          {tail: "sleep 1000", code: -1},
		"ended, kill":    {tail: "exit 4", end: waitAnd((*monitor.Exec).Kill), code: 4},
		"ended, close":   {tail: "exit 4", code: 4},
		"hung up, close": {tail: "sleep 1000", terminal: true, end: func(x *monitor.Exec) error { return x.Terminal.Close() }, code: 129},
		"ended, release": {tail: "exit 4", end: waitAnd(func(x *monitor.Exec) error { x.Release(); return nil }), code: 4, left: 2},
	}
	for _, h := range [][]string{{"unified"}, {"freezer", "pids"}, {"pids"}} {
		t.Run(strings.Join(h, "+"), func(t *testing.T) {
			n := newNode(t)
			req := n.request("c", "sleep 1000")
			req.Cgroup = n.cgroup("c", h...)
			st := n.run(req)
			for name, tt := range ends {
				x, pids := n.daemons(tt.tail, tt.terminal, func() []int { return n.session("c", h[0], st.Pid) })
				if tt.end != nil {
					if err := tt.end(x); err != nil {
						t.Errorf("%s: %v", name, err)
					}
				}
				if tt.code >= 0 {
					if code, err := x.Wait(t.Context()); code != tt.code || err != nil {
						t.Errorf("%s: exit %d %v", name, code, err)
					}
				}
				x.Close()
				if tt.left == 0 {
					for _, pid := range pids {
						eventually(t, name+": a process of the session ends", func() bool { return !alive(pid) })
					}
				}
				if left := slices.DeleteFunc(pids, func(pid int) bool { return !alive(pid) }); len(left) != tt.left || !alive(st.Pid) {
					t.Errorf("%s: processes %v live on, the container: %v", name, left, alive(st.Pid))
				}
			}
		})
	}
}

func waitAnd(then func(*monitor.Exec) error) func(*monitor.Exec) error {
	return func(x *monitor.Exec) error {
		if _, err := x.Wait(context.Background()); err != nil {
			return err
		}
		return then(x)
	}
}

// daemons starts a session in container c that leaves two daemons behind and goes on with tail. It returns all its
// processes, of which list knows.
func (n *node) daemons(tail string, terminal bool, list func() []int) (*monitor.Exec, []int) {
	t := n.t
	t.Helper()
	before := map[int]bool{}
	for _, pid := range list() {
		before[pid] = true
	}
	up, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer up.Close()
	gate, open, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	script := "setsid sleep 1000 </dev/null >/dev/null 2>&1 & (setsid sleep 1000 </dev/null >/dev/null 2>&1 &); echo up; read go; " + tail
	req := &monitor.ExecRequest{ID: "c", Stdin: gate, Stdout: w, Process: &specs.Process{Args: []string{"/bin/sh", "-c", script}, Cwd: "/", Terminal: terminal}}
	if terminal {
		req.Stdin, req.Stdout = nil, nil
	}
	x, err := n.Exec(t.Context(), req)
	w.Close()
	gate.Close()
	if err != nil {
		t.Fatal(err)
	}
	if terminal {
		up, open = x.Terminal, x.Terminal
	}
	if _, err := io.ReadFull(up, make([]byte, 3)); err != nil {
		t.Fatal(err)
	}
	var pids []int
	eventually(t, "the session is up", func() bool {
		pids = slices.DeleteFunc(list(), func(pid int) bool { return before[pid] })
		return len(pids) == 3 && daemonsOf(pids) == 2
	})
	if _, err := open.WriteString("\n"); err != nil {
		t.Fatal(err)
	}
	return x, pids
}

// daemonsOf counts those of the processes that have become sleep.
func daemonsOf(pids []int) (n int) {
	for _, pid := range pids {
		if b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); bytes.HasPrefix(b, []byte("sleep")) {
			n++
		}
	}
	return n
}

// session lists the processes in and below the container's cgroup, but its own.
func (n *node) session(id, hierarchy string, but int) (pids []int) {
	n.t.Helper()
	dir := filepath.Join("/sys/fs/cgroup", hierarchy, testns.CgroupParent(), id)
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.Name() != "cgroup.procs" {
			return nil
		}
		b, _ := os.ReadFile(path)
		for _, f := range strings.Fields(string(b)) {
			if pid, _ := strconv.Atoi(f); pid != but {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	if err != nil {
		n.t.Fatal(err)
	}
	return pids
}

// TestOOM lets the kernel kill for memory: the init itself, and a child whose parent goes on.
func TestOOM(t *testing.T) {
	n := newNode(t)
	const hog = `awk 'BEGIN { s = "x"; while (1) s = s s }'`
	for _, tt := range []struct {
		id, script string
		code       int
		oom        bool
	}{
		{"init", "exec " + hog, 137, true},
		{"child", hog + "; exit 5", 5, true},
		{"none", "exit 5", 5, false},
	} {
		req := n.request(tt.id, tt.script)
		req.Cgroup = n.cgroup("oom-"+tt.id, "memory")
		if err := os.WriteFile(filepath.Join(req.Cgroup.V1["memory"], "memory.limit_in_bytes"), []byte("16M"), 0); err != nil {
			t.Fatal(err)
		}
		n.run(req)
		if st := n.stopped(tt.id); st.ExitCode != tt.code || st.OOMKilled != tt.oom {
			t.Errorf("%s: %+v", tt.id, st)
		}
	}
}

// TestSharedPIDs ends a container without a pid namespace of its own: nothing of it may stay.
func TestSharedPIDs(t *testing.T) {
	n := newNode(t)
	req := n.request("c", "setsid sleep 1000 & (setsid sleep 1000 &) ; sleep 0.1; exit 3")
	req.Spec.Linux.Namespaces = req.Spec.Linux.Namespaces[1:]
	req.Cgroup = n.cgroup("c", "unified")
	n.run(req)
	if st := n.stopped("c"); st.ExitCode != 3 {
		t.Errorf("%+v", st)
	}
	eventually(t, "the cgroup is empty", func() bool { return len(n.session("c", "unified", 0)) == 0 })
}

// TestOrphans reaps what was re-parented to cri-monitor.
func TestOrphans(t *testing.T) {
	n := newNode(t)
	req := n.request("c", "for i in 1 2 3 4 5 6; do (sleep 0.05 &); done; sleep 1000")
	req.Spec.Linux.Namespaces = req.Spec.Linux.Namespaces[1:]
	req.Cgroup = n.cgroup("c", "unified")
	st := n.run(req)
	eventually(t, "one child is left besides the nursery and it is the container", func() bool {
		lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", n.pid))
		var pids []string
		for _, l := range lists {
			b, _ := os.ReadFile(l)
			for _, pid := range strings.Fields(string(b)) {
				if c, _ := os.ReadFile("/proc/" + pid + "/cmdline"); !strings.HasPrefix(string(c), "cri-stub") {
					pids = append(pids, pid)
				}
			}
		}
		return len(pids) == 1 && pids[0] == strconv.Itoa(st.Pid)
	})
}

// TestMemory tells what a container costs in this process.
func TestMemory(t *testing.T) {
	n := newNode(t)
	pss := func() int {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", n.pid))
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) > 1 && f[0] == "Pss:" {
				kb, _ := strconv.Atoi(f[1])
				return kb
			}
		}
		return 0
	}
	n.run(n.request("first", "sleep 1000"))
	before := pss()
	const count = 50
	for i := range count {
		n.run(n.request(fmt.Sprintf("c%d", i), "exec sleep 1000"))
	}
	eventually(t, "memory is given back", func() bool { return pss() < before+count*200 })
	t.Logf("Pss %d kB with one container, %d kB with %d more: %d kB each", before, pss(), count, (pss()-before)/count)
}
