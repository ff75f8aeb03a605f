// Enginebench compares the native engine with OCI runtime binaries behind the same interface: create+start, exec and
// delete of one container, with docker's default seccomp profile, and again with a limit of a tenth of a CPU; first in
// namespaces that are all the container's own, then as the containers of a pod are: its network, ipc and uts namespaces
// are there before them.
//
// The engines take turns in every round, so that a noisy moment hits all of them. "Started" is the arrival of the
// container's first byte of output. CPU is what this process and everything it started used, the container's first
// process included. It needs root and works in mount and network namespaces of its own; a cgroup2 mount of a hybrid
// layout is hidden there from all engines, since crun refuses to run with it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const isolated = "ENGINEBENCH_ISOLATED"

func main() {
	rounds := flag.Int("n", 30, "rounds")
	warm := flag.Int("warm", 2, "rounds before that which don't count")
	engines := flag.String("engines", "native,crun,runc", "native, or OCI runtime binaries")
	flag.DurationVar(&settling, "settle", settling, "rest before each turn: pods come one by one; 0: one right after the other")
	flag.Parse()
	if os.Getenv(isolated) == "" {
		os.Exit(isolate())
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if err := bench(ctx, *rounds, *warm, strings.Split(*engines, ",")); err != nil {
		fmt.Fprintln(os.Stderr, "enginebench:", err)
		os.Exit(1)
	}
}

// isolate runs this program again in its own namespaces.
func isolate() int {
	c := exec.Command("/proc/self/exe", os.Args[1:]...)
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.Env = append(os.Environ(), isolated+"=1")
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	err := c.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return max(exit.ExitCode(), 1)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "enginebench: namespaces (root is needed):", err)
		return 1
	}
	return 0
}

// enter prepares the namespaces: nothing reaches the host, /run is empty, orphans come to this process.
func enter() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("tmpfs on /run: %w", err)
	}
	const unified = "/sys/fs/cgroup/unified"
	var st unix.Statfs_t
	if unix.Statfs(unified, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
		if err := unix.Unmount(unified, 0); err != nil {
			return fmt.Errorf("hide %s: %w", unified, err)
		}
		// What lies below is the host's tmpfs; runtimes would make directories in it.
		if err := unix.Mount("tmpfs", unified, "tmpfs", 0, "size=1m"); err != nil {
			return fmt.Errorf("hide %s: %w", unified, err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("subreaper: %w", err)
	}
	return nil
}
