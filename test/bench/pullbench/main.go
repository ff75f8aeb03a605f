// Pullbench compares how fast runtimes pull images: wall time, CPU time and peak memory of PullImage, as a CRI client sees it,
// from one registry on loopback.
//
// The runtimes take turns for every image in every round, so that a noisy moment hits all of them. Each has its own
// root on the same file system: ext4 with a journal, since ext4 without one shuns recently removed inodes for minutes,
// which would make a benchmark of repeated pulls measure that. Before a pull dirty pages are written out and the image, if it is there, is removed. A
// runtime's CPU and memory are those of its process and the children it waited for; what the kernel writes back after the
// reply is nobody's. "Durable" says whether the runtime syncs the unpacked layers before it acknowledges the pull. It needs
// root and works in mount and network namespaces of its own.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const isolated = "PULLBENCH_ISOLATED"

type options struct {
	rounds     int
	dir, cache string
	criServer  string
	containerd string
	crio       string
	images     []string
	doc        string // the table for people to read
}

func main() {
	var o options
	flag.IntVar(&o.rounds, "n", 5, "rounds")
	flag.StringVar(&o.dir, "dir", "", "directory for the runtimes' roots; a fresh ext4 in a loop file if empty")
	flag.StringVar(&o.cache, "cache", filepath.Join(os.TempDir(), "pullbench-images"), "directory that keeps the built images")
	flag.StringVar(&o.criServer, "cri-server", "bin/cri-server", "cri-server, with cri-monitor beside it")
	flag.StringVar(&o.containerd, "containerd", "", "containerd; without it it is left out")
	flag.StringVar(&o.crio, "crio", "", "crio, with pinns and runc beside it; without it CRI-O is left out")
	flag.StringVar(&o.doc, "doc", "", "file to write the table to, as Markdown; none if empty")
	images := flag.String("images", "", "comma-separated names; all if empty: "+strings.Join(imageNames(), ","))
	flag.Parse()
	o.images = imageNames()
	if *images != "" {
		o.images = strings.Split(*images, ",")
	}
	if os.Getenv(isolated) == "" {
		os.Exit(isolate())
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if err := bench(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "pullbench:", err)
		os.Exit(1)
	}
}

// isolate runs this program again in its own namespaces.
func isolate() int {
	c := exec.Command("/proc/self/exe", os.Args[1:]...)
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.Env = append(os.Environ(), isolated+"=1")
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	err := c.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return max(exit.ExitCode(), 1)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "pullbench: namespaces (root is needed):", err)
		return 1
	}
	return 0
}

// enter prepares the namespaces: nothing reaches the host, /run is empty, loopback is up, /proc is this pid namespace's.
func enter() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	if err := unix.Mount("tmpfs", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("tmpfs on /run: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("proc: %w", err)
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return fmt.Errorf("loopback: %w: %s", err, out)
	}
	return nil
}
