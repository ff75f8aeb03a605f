package testnode

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// programs are the processes of cri-server and cri-monitor that this one has started, and waits for.
var programs sync.Map

// Unit runs cri-monitor as systemd runs a unit with FileDescriptorStoreMax=, Type=notify, Restart=on-failure and
// RestartSec=0: it keeps descriptors under their names, ignores one that it has already, and hands all of them to the next
// process.
type Unit struct {
	path, dir string
	env       []string
	notify    *net.UnixConn

	mu    sync.Mutex
	cmd   *exec.Cmd
	ready chan struct{} // closed when the present process has said so
	ended chan struct{}
	// drained is closed when the notify socket was read up to a message of our own.
	drained chan struct{}
	over    bool
	names   []string
	fds     []*os.File
}

// StartUnit starts the cri-monitor at path; dir is its state directory, and has its socket and its log; env is
// added to its environment. It returns when cri-monitor is ready.
func StartUnit(path, dir string, env ...string) (*Unit, error) {
	u := &Unit{path: path, dir: dir, env: env, ended: make(chan struct{})}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	var err error
	if u.notify, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"}); err != nil {
		return nil, err
	}
	go u.listen()
	if err := u.start(); err != nil {
		return nil, err
	}
	go u.keep()
	u.mu.Lock()
	ready := u.ready
	u.mu.Unlock()
	select {
	case <-ready:
		return u, nil
	case <-time.After(10 * time.Second):
		return nil, errors.New("test node: cri-monitor is not ready")
	}
}

func (u *Unit) start() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	args := []string{"--socket", filepath.Join(u.dir, "monitor.sock"), "--state-dir", u.dir}
	// $$ stays the same over exec, as LISTEN_PID must be.
	c := exec.Command("/bin/sh", append([]string{"-c", `export LISTEN_PID=$$; exec "$0" "$@"`, u.path}, args...)...)
	c.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "NOTIFY_SOCKET=" + filepath.Join(u.dir, "notify"),
		"LISTEN_FDS=" + strconv.Itoa(len(u.fds)), "LISTEN_FDNAMES=" + strings.Join(u.names, ":")}
	c.Env = append(c.Env, u.env...)
	c.ExtraFiles = u.fds
	log, err := os.OpenFile(filepath.Join(u.dir, "monitor.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	c.Stdout, c.Stderr = log, log
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	u.ready = make(chan struct{})
	if err := c.Start(); err != nil {
		return err
	}
	programs.Store(c.Process.Pid, true)
	u.cmd = c
	return nil
}

// keep starts the next process when one has died.
func (u *Unit) keep() {
	defer close(u.ended)
	for {
		_ = u.cmd.Wait()
		programs.Delete(u.cmd.Process.Pid)
		u.mu.Lock()
		over := u.over
		u.mu.Unlock()
		if over {
			return
		}
		u.drain()
		if err := u.start(); err != nil {
			fmt.Fprintln(os.Stderr, "test node: cri-monitor:", err)
			return
		}
	}
}

// drain returns when all that the process has sent was read: systemd looks at its notify socket before it looks at
// processes that have ended, too.
func (u *Unit) drain() {
	c, err := net.Dial("unixgram", filepath.Join(u.dir, "notify"))
	if err != nil {
		return
	}
	defer c.Close()
	u.mu.Lock()
	u.drained = make(chan struct{})
	drained := u.drained
	u.mu.Unlock()
	if _, err := c.Write([]byte("X_DRAINED=1")); err == nil {
		<-drained
	}
}

// Kill ends cri-monitor with SIGKILL; the next one starts by itself. What is killed may be the next one already.
func (u *Unit) Kill() {
	u.mu.Lock()
	defer u.mu.Unlock()
	_ = u.cmd.Process.Kill()
}

// Stop ends cri-monitor for good.
func (u *Unit) Stop() {
	u.mu.Lock()
	u.over = true
	_ = u.cmd.Process.Signal(syscall.SIGTERM)
	u.mu.Unlock()
	select {
	case <-u.ended:
	case <-time.After(5 * time.Second):
		u.Kill()
		<-u.ended
	}
	u.notify.Close()
}

// Kept are the names of the descriptors in the store.
func (u *Unit) Kept() []string {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Clone(u.names)
}

func (u *Unit) listen() {
	b, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4*16))
	for {
		n, oobn, _, _, err := u.notify.ReadMsgUnix(b, oob)
		if err != nil {
			return
		}
		var files []*os.File
		if messages, err := syscall.ParseSocketControlMessage(oob[:oobn]); err == nil {
			for i := range messages {
				fds, _ := syscall.ParseUnixRights(&messages[i])
				for _, fd := range fds {
					files = append(files, os.NewFile(uintptr(fd), "kept"))
				}
			}
		}
		u.told(b[:n], files)
	}
}

func (u *Unit) told(message []byte, files []*os.File) {
	u.mu.Lock()
	defer u.mu.Unlock()
	said := map[string]string{}
	for field := range bytes.SplitSeq(message, []byte("\n")) {
		k, v, _ := strings.Cut(string(field), "=")
		said[k] = v
	}
	if said["X_DRAINED"] == "1" {
		close(u.drained)
	}
	if said["READY"] == "1" {
		close(u.ready)
	}
	name := said["FDNAME"]
	if said["FDSTOREREMOVE"] == "1" {
		for i := len(u.names) - 1; i >= 0; i-- {
			if u.names[i] == name {
				u.fds[i].Close()
				u.names, u.fds = append(u.names[:i], u.names[i+1:]...), append(u.fds[:i], u.fds[i+1:]...)
			}
		}
	}
	for _, f := range files {
		if said["FDSTORE"] != "1" || said["FDPOLL"] != "0" || u.has(f) {
			f.Close()
			continue
		}
		u.names, u.fds = append(u.names, name), append(u.fds, f)
	}
}

// has tells whether the same open file is there already, by kcmp(2), as systemd does.
func (u *Unit) has(f *os.File) bool {
	pid := uintptr(os.Getpid())
	for _, old := range u.fds {
		const kcmpFile = 0
		r, _, errno := unix.Syscall6(unix.SYS_KCMP, pid, pid, kcmpFile, old.Fd(), f.Fd(), 0)
		if errno == 0 && r == 0 {
			return true
		}
	}
	return false
}

// ofMonitor matches the names of what a cri-monitor starts: a copy of itself, stubs, OCI runtimes.
var ofMonitor = regexp.MustCompile("^(cri-|runc|crun)")

// ReapOrphans does, for as long as the program runs, what init does for the processes of a cri-monitor that was killed.
// They lead sessions of their own, unlike what the program itself starts. It makes the caller their subreaper.
func ReapOrphans() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("test node: subreaper: %w", err)
	}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGCHLD)
	go func() {
		own, _ := unix.Getsid(0)
		for ; ; <-ended {
			for _, pid := range children() {
				sid, err := unix.Getsid(pid)
				p, there := readProcess(fmt.Sprintf("/proc/%d", pid))
				_, awaited := programs.Load(pid)
				// What they had just forked when they were killed is in our session still, and so is what a unit's has called.
				if err == nil && there && (sid != own || ofMonitor.MatchString(p.Comm) && !awaited) {
					_, _ = unix.Wait4(pid, nil, unix.WNOHANG|unix.WALL, nil)
				}
			}
		}
	}()
	return nil
}

// children are those of this process, dead ones too: proc_pid_task(5).
func children() []int {
	var pids []int
	tasks, _ := os.ReadDir("/proc/self/task")
	for _, t := range tasks {
		b, _ := os.ReadFile("/proc/self/task/" + t.Name() + "/children")
		for f := range strings.FieldsSeq(string(b)) {
			if pid, err := strconv.Atoi(f); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}
