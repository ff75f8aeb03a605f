package reaper

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/testns"
)

// keepsZombies is a parent that never waits for its children.
const keepsZombies = "exec sleep 1000"

// grandchild starts a shell that starts a process and then does as after says. The process ends as how says, when the
// returned file is closed.
func grandchild(t *testing.T, how, after string) (pid, pidfd int, end *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	out, tell, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	script := `{ read x <&3; ` + how + `; } & echo $!; exec >&- 3<&-; ` + after
	parent, err := theReaper().Fork(func() (int, error) {
		return syscall.ForkExec("/bin/sh", []string{"sh", "-c", script}, &syscall.ProcAttr{Files: []uintptr{0, tell.Fd(), 2, r.Fd()}})
	})
	if err != nil {
		t.Fatal(err)
	}
	if after == keepsZombies {
		t.Cleanup(func() {
			_ = unix.Kill(parent.Pid(), unix.SIGKILL)
			_, _ = parent.Wait(context.Background())
		})
	}
	r.Close()
	tell.Close()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	out.Close()
	if _, err := fmt.Sscan(strings.TrimSpace(line), &pid); err != nil {
		t.Fatal(err)
	}
	if pidfd, err = unix.PidfdOpen(pid, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(pidfd) })
	return pid, pidfd, w
}

// exitInfo: Linux 6.15 tells the status of a process that was reaped.
func exitInfo(t *testing.T) bool {
	pidfd := -1
	p, err := os.StartProcess("/bin/true", []string{"true"}, &os.ProcAttr{Sys: &syscall.SysProcAttr{PidFD: &pidfd}})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	_, _ = p.Wait()
	_, known := exitStatus(p.Pid, pidfd)
	return known
}

// The parent of a foreign process may reap it, or leave it a zombie: its status is known either way, where the kernel tells
// that of a reaped one. The parent of an orphan is testns, which reaps it at once.
func TestAttendForeign(t *testing.T) {
	const suicide = `kill -9 $(exec sh -c 'echo $PPID')`
	for _, tt := range []struct {
		name, how, after string
		code             int
	}{
		{"reaped", "exit 42", "wait", 42}, {"reaped success", "exit 0", "wait", 0}, {"reaped signal", suicide, "wait", 137},
		{"orphan", "exit 42", "exit", 42}, {"orphan signal", suicide, "exit", 137},
		{"zombie", "exit 42", keepsZombies, 42}, {"zombie signal", suicide, keepsZombies, 137},
	} {
		t.Run(tt.name, func(t *testing.T) {
			pid, pidfd, end := grandchild(t, tt.how, tt.after)
			c, err := theReaper().Attend(pid, pidfd)
			if err != nil {
				t.Fatal(err)
			}
			select {
			case <-c.Done():
				t.Fatal("done before the end")
			default:
			}
			end.Close()
			ctx, cancel := context.WithTimeout(t.Context(), testns.Patience(10*time.Second))
			defer cancel()
			s, err := c.Wait(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if tt.after != keepsZombies && s.Unknown && s.Code() == 255 && !exitInfo(t) {
				return // nothing else can be known
			}
			if s.Unknown || s.Code() != tt.code {
				t.Errorf("status %+v, code %d, want %d", s, s.Code(), tt.code)
			}
		})
	}
}

// A child that ended while nobody reaped is not lost, and is still known as a child.
func TestPause(t *testing.T) {
	r := theReaper()
	r.Pause()
	defer r.Resume()
	pidfd := -1
	c, err := r.Fork(func() (int, error) {
		return syscall.ForkExec("/bin/sh", []string{"sh", "-c", "exit 7"},
			&syscall.ProcAttr{Files: []uintptr{0, 1, 2}, Sys: &syscall.SysProcAttr{PidFD: &pidfd}})
	})
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 10_000); n != 1 {
		t.Fatal("it does not end", err)
	}
	if again, err := r.Attend(c.Pid(), pidfd); err != nil || again != c {
		t.Errorf("attend of a zombie: %v, %v", again, err)
	}
	select {
	case <-c.Done():
		t.Error("reaped while paused")
	default:
	}
	r.Resume()
	if s, err := c.Wait(t.Context()); err != nil || s.Code() != 7 {
		t.Errorf("status %v, %v", s, err)
	}
}

func TestUnknown(t *testing.T) {
	if c := (Status{Unknown: true}).Code(); c != UnknownCode {
		t.Error(c)
	}
}

// The signals that Go's runtime sends to its own threads must not cut a grace short: poll(2) never restarts.
func TestEndsIn(t *testing.T) {
	_, pidfd, end := grandchild(t, "exit 0", "wait")
	if EndsIn(pidfd, 0) || EndsIn(pidfd, 20*time.Millisecond) {
		t.Error("ended before its end")
	}
	told := make(chan bool)
	go func() { told <- EndsIn(pidfd, time.Minute) }()
	for range 500 {
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		for _, thread := range threads {
			if tid, err := strconv.Atoi(thread.Name()); err == nil {
				_ = unix.Tgkill(os.Getpid(), tid, unix.SIGURG) // what preempts
			}
		}
	}
	end.Close()
	if !<-told || !EndsIn(pidfd, 0) {
		t.Error("the end was not seen")
	}
}
