// Package holder tells who holds a flock(2), and what keeps it from ending: a process that was killed keeps its locks while
// one of its threads is in a system call that can't be interrupted, because a file system does not answer. Nothing is
// kept here; all comes from proc(5), and what can't be read there is left out.
package holder

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Of describes the process that holds a flock(2) on the file behind f, "" if it is not known.
func Of(f *os.File) string {
	pid := pidOf(f)
	if pid == 0 {
		return ""
	}
	return describe("/proc", pid)
}

// Gone tells whether the process that took the flock(2) on the file behind f is dead: what keeps the lock is a child that it
// was about to start, and has only until its execve(2) what is closed there. True also if nobody is seen to have it: it has just
// been let go, or proc(5) does not show it, for it is of a process of another pid namespace, dead or alive.
func Gone(f *os.File) bool {
	pid := pidOf(f)
	return pid == 0 || unix.Kill(pid, 0) == unix.ESRCH
}

func pidOf(f *os.File) int {
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil {
		return 0
	}
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		return 0
	}
	return find(string(locks), fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino))
}

// find returns who holds the lock of a file, "MAJOR:MINOR:INODE", by the lines of /proc/locks; those with "->" only wait.
func find(locks, file string) int {
	for line := range strings.Lines(locks) {
		f := strings.Fields(line) // "1: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE 0 EOF"
		if len(f) > 5 && f[1] == "FLOCK" && f[5] == file {
			pid, _ := strconv.Atoi(f[4])
			return max(pid, 0) // below 0: no process of this pid namespace
		}
	}
	return 0
}

func describe(proc string, pid int) string {
	dir := filepath.Join(proc, strconv.Itoa(pid))
	comm, err := os.ReadFile(dir + "/comm")
	if err != nil {
		return fmt.Sprintf("process %d", pid)
	}
	who := fmt.Sprintf("process %d (%s)", pid, strings.TrimSpace(string(comm)))
	tasks, _ := filepath.Glob(dir + "/task/[0-9]*")
	for _, task := range tasks {
		stat, _ := os.ReadFile(task + "/stat")
		name := strings.LastIndex(string(stat), ") ") // which may hold anything
		if name < 0 || name+2 == len(stat) || stat[name+2] != 'D' {
			continue
		}
		return fmt.Sprintf("%s, which can't end before its thread %s wakes up, in uninterruptible sleep%s",
			who, filepath.Base(task), asleep(task))
	}
	return who
}

// asleep says where in the kernel a thread sleeps, and for which file if its system call has a descriptor. Without one it may as
// well be a lock of the kernel's that many want (rtnetlink), for a moment.
func asleep(task string) string {
	where := ""
	if b, _ := os.ReadFile(task + "/wchan"); len(b) > 1 {
		where = " in " + string(b)
	}
	b, _ := os.ReadFile(task + "/syscall") // "NUMBER 0xARG...", "running" or, at its end, "-1"
	f := strings.Fields(string(b))
	if len(f) < 2 {
		return where
	}
	number, err := strconv.Atoi(f[0])
	fd, ferr := strconv.ParseUint(strings.TrimPrefix(f[1], "0x"), 16, 31)
	if err != nil || ferr != nil || !takesFD[number] {
		return where
	}
	file, err := os.Readlink(task + "/fd/" + strconv.FormatUint(fd, 10))
	if err != nil {
		return where
	}
	return where + " for " + file + ": a file system does not answer"
}

// takesFD are system calls whose first argument is the file that they wait for.
var takesFD = map[int]bool{
	syscall.SYS_READ: true, syscall.SYS_WRITE: true, syscall.SYS_PREAD64: true, syscall.SYS_PWRITE64: true,
	syscall.SYS_WRITEV: true, syscall.SYS_CLOSE: true, syscall.SYS_FSTAT: true, syscall.SYS_FSTATFS: true,
	syscall.SYS_FTRUNCATE: true, syscall.SYS_FSYNC: true, syscall.SYS_FDATASYNC: true, syscall.SYS_GETDENTS64: true,
}
