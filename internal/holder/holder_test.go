package holder

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestFind(t *testing.T) {
	const locks = `1: POSIX  ADVISORY  WRITE 10 08:01:77 0 EOF
2: FLOCK  ADVISORY  WRITE 11 08:01:77 0 EOF
2: -> FLOCK  ADVISORY  WRITE 12 08:01:78 0 EOF
3: FLOCK  ADVISORY  WRITE -1 08:01:79 0 EOF
4: FLOCK
5: FLOCK  ADVISORY  WRITE x 08:01:80 0 EOF
`
	for file, want := range map[string]int{"08:01:77": 11, "08:01:78": 0, "08:01:79": 0, "08:01:80": 0, "08:02:77": 0, "": 0} {
		if got := find(locks, file); got != want {
			t.Errorf("%s: %d, want %d", file, got, want)
		}
	}
}

func TestOf(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got := Of(f); got != "" {
		t.Errorf("nobody holds it: %q", got)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	comm, _ := os.ReadFile("/proc/self/comm")
	want := fmt.Sprintf("process %d (%s)", os.Getpid(), comm[:len(comm)-1])
	if got := Of(f); got != want && got != "" { // a file system may number its files otherwise in /proc/locks (btrfs)
		t.Errorf("%q, want %q", got, want)
	}
}

func TestDescribe(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	thread := func(pid int, stat, wchan, call string) {
		task := fmt.Sprintf("%d/task/%d/", pid, pid+1)
		write(fmt.Sprintf("%d/comm", pid), "cri-monitor\n")
		write(task+"stat", stat)
		write(task+"wchan", wchan)
		write(task+"syscall", call)
		if err := os.MkdirAll(filepath.Join(dir, task, "fd"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink("/var/log/pods/a.log", filepath.Join(dir, task, "fd/30")); err != nil {
			t.Fatal(err)
		}
	}
	const stuck = "process %d (cri-monitor), which can't end before its thread %d wakes up, in uninterruptible sleep%s"
	thread(10, "11 (a) D b) S 1", "0", "running")
	thread(20, "21 (a) D 1", "request_wait_answer", "1 0x1e 0x0 0x0")
	thread(30, "31 (a ) D 1", "0", "231 0x1e")
	thread(40, "41 (a) D 1", "exit", "-1 0x7ff 0x0")
	thread(50, "51 (a) D 1", "", "1 0x1f")
	thread(60, "garbage", "", "")
	for pid, want := range map[int]string{
		10: "process 10 (cri-monitor)",
		20: fmt.Sprintf(stuck, 20, 21, " in request_wait_answer for /var/log/pods/a.log: a file system does not answer"),
		30: fmt.Sprintf(stuck, 30, 31, ""),
		40: fmt.Sprintf(stuck, 40, 41, " in exit"),
		50: fmt.Sprintf(stuck, 50, 51, ""),
		60: "process 60 (cri-monitor)",
		70: "process 70",
	} {
		if got := describe(dir, pid); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
