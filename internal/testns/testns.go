// Package testns runs a package's tests in namespaces of their own, so that no mount, interface, netfilter rule or
// netns of a test can reach the machine, and fails the run when a test leaves a process or a cgroup behind.
//
// A package uses it with
//
//	func TestMain(m *testing.M) { testns.Main(m) }
//
// and calls Root in each test that needs the privileges.
package testns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const env = "CRI_SERVER_TESTNS"

// Main re-executes the test binary as a child in a new mount and network namespace (private propagation, an empty
// tmpfs on /run, lo up), waits for it, and checks what is left.
func Main(m *testing.M) {
	if os.Geteuid() != 0 {
		os.Exit(m.Run())
	}
	if os.Getenv(env) == "" {
		os.Exit(outer())
	}
	if err := enter(); err != nil {
		fmt.Fprintln(os.Stderr, "testns:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// Root skips the test unless it runs as root in namespaces of its own.
func Root(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if os.Getenv(env) == "" {
		t.Fatal("the package's TestMain must call testns.Main")
	}
}

// CgroupParent is the cgroup path, relative to each hierarchy's root, below which this run's tests make their cgroups.
// The tests make and remove it; what is left of it at the end fails the run.
func CgroupParent() string { return "/cri-test-" + os.Getenv(env) }

func outer() int {
	// Orphans of tests come to us instead of init, so that they are seen.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, "testns: subreaper:", err)
		return 1
	}
	id := strconv.Itoa(os.Getpid())
	c := exec.Command("/proc/self/exe", os.Args[1:]...)
	c.Args[0] = os.Args[0]
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.Env = append(os.Environ(), env+"="+id)
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	runtime.LockOSThread() // Pdeathsig counts the thread, not the process (prctl(2))
	err := c.Start()
	if err == nil {
		stop := reapOrphans(c.Process.Pid)
		err = c.Wait()
		stop()
	}
	code := 0
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		code = max(exit.ExitCode(), 1)
	case err != nil:
		fmt.Fprintln(os.Stderr, "testns:", err)
		return 1
	}
	left := append(processes(), cgroups(id)...)
	if len(left) > 0 {
		fmt.Fprintln(os.Stderr, "FAIL: the tests left behind:\n\t"+strings.Join(left, "\n\t"))
		return 1
	}
	return code
}

// reapOrphans does what init does, but for the child with this pid: the first process of a pid namespace can't end before
// the last of the others was reaped, by whoever has become its parent (pid_namespaces(7)).
func reapOrphans(but int) (stop func()) {
	ended, done, idle := make(chan os.Signal, 1), make(chan struct{}), make(chan struct{})
	signal.Notify(ended, syscall.SIGCHLD)
	go func() {
		defer close(idle)
		for {
			for _, p := range children() {
				if pid, err := strconv.Atoi(p); err == nil && pid != but {
					_, _ = unix.Wait4(pid, nil, unix.WNOHANG|unix.WALL, nil)
				}
			}
			select {
			case <-ended:
			case <-done:
				return
			}
		}
	}()
	return func() {
		signal.Stop(ended)
		close(done)
		<-idle
	}
}

// children are the pids of this process's, dead ones too: proc_pid_task(5).
func children() []string {
	var pids []string
	lists, _ := filepath.Glob("/proc/self/task/*/children")
	for _, f := range lists {
		b, _ := os.ReadFile(f)
		pids = append(pids, strings.Fields(string(b))...)
	}
	return pids
}

func enter() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	if err := EmptyRun(); err != nil {
		return err
	}
	return loopbackUp()
}

// EmptyRun mounts a tmpfs on /run, in which the machine's systemd is out of sight. On a node that is there for tests,
// which says so by CRI_SERVER_TEST_SYSTEMD in the environment, systemd and its bus stay.
func EmptyRun() error {
	kept := map[string]int{}
	if os.Getenv("CRI_SERVER_TEST_SYSTEMD") != "" {
		for _, dir := range []string{"/run/systemd", "/run/dbus"} {
			fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE) // Linux 5.2
			if err != nil {
				return fmt.Errorf("keep %s: %w", dir, err)
			}
			defer unix.Close(fd)
			kept[dir] = fd
		}
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("tmpfs on /run: %w", err)
	}
	for dir, fd := range kept {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		if err := unix.MoveMount(fd, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return fmt.Errorf("keep %s: %w", dir, err)
		}
	}
	return nil
}

func loopbackUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	if unix.IoctlIfreq(s, unix.SIOCGIFFLAGS, ifr) == nil && ifr.Uint16()&unix.IFF_UP != 0 {
		return nil // a child of a test, which may lack the right to set it
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("lo up: %w", err)
	}
	return nil
}

// processes returns our children that are still alive a moment after the tests ended, and kills them.
func processes() []string {
	var left []string
	for try := 0; ; try++ {
		for {
			if pid, err := unix.Wait4(-1, nil, unix.WNOHANG|unix.WALL, nil); err != nil || pid <= 0 {
				break
			}
		}
		pids := children()
		if len(pids) == 0 {
			return left
		}
		if try < 200 { // the kernel is still taking down what was killed
			time.Sleep(50 * time.Millisecond)
			continue
		}
		for _, p := range pids {
			b, _ := os.ReadFile("/proc/" + p + "/cmdline")
			if try == 200 {
				left = append(left, "process "+p+" "+strings.ReplaceAll(string(b), "\x00", " "))
			}
			if n, err := strconv.Atoi(p); err == nil {
				_ = unix.Kill(n, unix.SIGKILL)
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// cgroups returns what is left of the run's CgroupParent in any hierarchy, and removes it.
func cgroups(id string) []string {
	var left []string
	roots, _ := filepath.Glob("/sys/fs/cgroup/*/cri-test-" + id)
	v2, _ := filepath.Glob("/sys/fs/cgroup/cri-test-" + id)
	for _, root := range append(roots, v2...) {
		left = append(left, "cgroup "+root)
		var dirs []string
		_ = filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, p)
			}
			return nil
		})
		for i := len(dirs) - 1; i >= 0; i-- {
			_ = unix.Rmdir(dirs[i])
		}
	}
	return left
}
