package testnode

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/testns"
)

const inside = "CRI_SERVER_TESTNODE"

// Isolate runs the calling program again in a new mount and network namespace and exits with its status; in that second
// run it prepares the namespaces and returns. When the second run has ended, what it left on the machine is printed,
// and taken down as far as possible, and makes the exit status 1. When nothing is left and the run succeeded, clean, if not
// nil, is told how many things were compared.
func Isolate(clean func(compared int)) error {
	if os.Getenv(inside) != "" {
		return Prepare()
	}
	if os.Geteuid() != 0 {
		return errors.New("test node: needs root")
	}
	os.Exit(outer(clean))
	return nil
}

func outer(clean func(int)) int {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, "test node: subreaper:", err)
		return 1
	}
	before := Take()
	c := exec.Command("/proc/self/exe", os.Args[1:]...)
	c.Args[0] = os.Args[0]
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.Env = append(os.Environ(), inside+"=1")
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWIPC, Pdeathsig: syscall.SIGKILL}
	// ^C reaches the whole foreground group; the inner run cleans up and ends, and this one waits for it.
	signal.Ignore(syscall.SIGINT)
	runtime.LockOSThread() // Pdeathsig counts the thread, not the process (prctl(2))
	err := attend(c)
	code := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = max(exit.ExitCode(), 1)
	} else if err != nil {
		fmt.Fprintln(os.Stderr, "test node:", err)
		return 1
	}
	left := endDescendants(os.Getpid(), nil)
	left = append(left, before.Added(Take())...)
	own, _ := filepath.Glob(fmt.Sprintf("/sys/fs/cgroup/*/cri-node-%d", c.Process.Pid))
	left = append(left, own...)
	if len(left) > 0 {
		fmt.Fprintln(os.Stderr, "LEAK: left on the machine:\n\t"+Lines(left))
		return max(code, 1)
	}
	if code == 0 && clean != nil {
		clean(len(before))
	}
	return code
}

// attend runs c. SIGTERM is passed on to it: to die of that would kill it before it could clean up.
func attend(c *exec.Cmd) error {
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM)
	defer signal.Stop(term)
	if err := c.Start(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- c.Wait() }()
	for {
		select {
		case s := <-term:
			_ = c.Process.Signal(s)
		case err := <-done:
			return err
		}
	}
}

// Prepare makes the mount namespace, which the caller must have to itself, a node's: private propagation, an empty
// /run, and an empty CNI directory where the machine has one.
func Prepare() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("test node: private mounts: %w", err)
	}
	if err := testns.EmptyRun(); err != nil {
		return fmt.Errorf("test node: %w", err)
	}
	for _, dir := range []string{"/etc/cni", "/opt/cni", "/var/lib/cni"} {
		if st, err := os.Lstat(dir); err != nil || !st.IsDir() {
			continue // a mount point that isn't there would have to be made on the machine
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
			return fmt.Errorf("test node: tmpfs on %s: %w", dir, err)
		}
	}
	return loopbackUp()
}

// HideUnified unmounts the cgroup2 of a hybrid cgroup hierarchy in the caller's mount namespace, if there is one.
func HideUnified() error {
	const dir = "/sys/fs/cgroup/unified"
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || st.Type != unix.CGROUP2_SUPER_MAGIC {
		return nil //nolint:nilerr // not hybrid
	}
	if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("test node: unmount %s: %w", dir, err)
	}
	// crun makes its directories there all the same; they must not be those of the machine's tmpfs below.
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("test node: tmpfs on %s: %w", dir, err)
	}
	return nil
}

func loopbackUp() error {
	if i, err := net.InterfaceByName("lo"); err == nil && i.Flags&net.FlagUp != 0 {
		return nil
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("test node: lo: %w", err)
	}
	defer unix.Close(s)
	r, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("test node: lo: %w", err)
	}
	r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, r); err != nil {
		return fmt.Errorf("test node: lo up: %w", err)
	}
	return nil
}
