package e2e

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/test/testnode"
)

// injected are the system calls that fail, and how: those by which the programs change what is on disk, in mounts and in
// other processes. write(2) is not among them: Go's own scheduler uses it too, and ends the program when it fails.
var injected = []struct {
	calls, errno string
}{
	{"openat", "EIO"}, {"openat", "EMFILE"}, {"mkdirat", "ENOSPC"}, {"renameat", "EIO"}, {"unlinkat", "EIO"}, {"newfstatat", "EIO"},
	{"fsync,fdatasync,syncfs", "EIO"}, {"mount,umount2", "ENOMEM"}, {"open_tree,move_mount,fsopen,fsconfig,fsmount", "ENOMEM"},
	{"openat2", "ENOMEM"}, {"sendmsg,sendto", "ENOMEM"}, {"recvmsg", "ECONNRESET"}, {"memfd_create,pipe2,socketpair", "EMFILE"},
	{"setns,unshare", "ENOMEM"}, {"fchownat,fchmodat,ftruncate,fallocate", "EIO"}, {"getdents64", "EIO"},
}

// inject has the n-th of some system calls of each thread of a process fail, until stop is called.
func (m *matrix) inject(pid int, calls, errno string, n int) (stop func() (hits int)) {
	m.t.Helper()
	out := filepath.Join(m.Dir, "tmp", "strace")
	args := []string{"-q", "-o", out, "-e", "trace=" + calls, "-e", fmt.Sprintf("inject=%s:error=%s:when=%d", calls, errno, n)}
	threads, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	for _, t := range threads { // not -f, which would follow into containers
		args = append(args, "-p", t.Name())
	}
	c := exec.Command("strace", args...)
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	stderr, err := c.StderrPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		m.t.Fatal(err)
	}
	said := make(chan string, 1)
	go func() { // ends with strace
		var all []string
		for s := bufio.NewScanner(stderr); s.Scan(); {
			all = append(all, s.Text())
		}
		said <- strings.Join(all, "\n")
	}()
	m.eventually("strace is attached", func() bool {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		return strings.Contains(string(b), fmt.Sprintf("TracerPid:\t%d\n", c.Process.Pid))
	})
	return func() int {
		_ = c.Process.Signal(syscall.SIGTERM)
		text := <-said
		_ = c.Wait()
		b, err := os.ReadFile(out)
		if err != nil {
			m.t.Errorf("%v: %s", err, text)
		}
		return strings.Count(string(b), "(INJECTED)")
	}
}

// TestSyscallFaults has system calls fail in the kernel's stead while pods live.
func TestSyscallFaults(t *testing.T) {
	if _, err := exec.LookPath("strace"); err != nil {
		t.Skip("strace is not installed")
	}
	m := withWitness(t, testnode.Options{})
	places := []int{2, 5}
	only := os.Getenv("CRI_SERVER_INJECT") // a part of a case's name, to look at it by itself
	if full {
		places = []int{1, 2, 3, 4, 5, 6, 8, 11, 15, 20, 27, 36}
	}
	lives, hits, refused := 0, 0, 0
	for _, program := range []string{"cri-server", "cri-monitor"} {
		for i, in := range injected {
			for j, n := range places {
				if !full && (i+j)%2 > 0 {
					continue
				}
				pid := m.ServerPid()
				if program == "cri-monitor" {
					pid = m.monitor()
				}
				when := fmt.Sprintf("%s: %s of %s at %d", program, in.errno, in.calls, n)
				if !strings.Contains(when, only) {
					continue
				}
				l := m.newLife(fmt.Sprintf("life-%d", lives))
				stop := m.inject(pid, in.calls, in.errno, n)
				failed := m.liveOn(l, when)
				got := stop()
				lives, hits, refused = lives+1, hits+got, refused+failed
				t.Logf("%s: %d failed, %d calls had to be repeated", when, got, failed)
				if m.ServerEnded(m.ctx) {
					t.Fatalf("%s: the server has ended", when)
				}
				m.lostThings(l, when)
				// What a removal could not do is done by the next.
				if failed := m.liveOn(m.newLife(l.name+"-2"), when+", undisturbed again"); failed > 0 {
					t.Errorf("%s, undisturbed again: %d calls failed", when, failed)
				}
				m.leaks(when)
			}
		}
	}
	t.Logf("%d lives, %d failed system calls, %d calls repeated, %d lost, %d leaked", lives, hits, refused, m.lost, m.leaked)
}

// liveOn leads a life, and repeats what fails.
func (m *matrix) liveOn(l *life, when string) (failed int) {
	for _, s := range l.steps() {
		if s.name == "import" {
			break
		}
		base := m.ctx
		ctx, cancel := context.WithTimeout(base, testns.Patience(time.Minute))
		m.ctx = ctx
		began := time.Now()
		tries, err := 0, fmt.Errorf("not tried")
		for ; err != nil && tries < 50; tries++ { // each thread has an n-th call of its own
			if err = s.call(); err != nil {
				m.t.Logf("%s, %s: %v", when, s.name, err)
			}
			if status.Code(err) == codes.Unavailable {
				time.Sleep(10 * time.Millisecond) // cri-monitor is being waited for
			}
		}
		cancel()
		m.ctx = base
		failed += tries - 1
		if err != nil {
			m.t.Fatalf("%s, %s: not after %d tries: %v", when, s.name, tries, err)
		}
		if took := time.Since(began); took > testns.Patience(30*time.Second) {
			m.t.Errorf("%s, %s: took %v", when, s.name, took)
		}
	}
	return failed
}
