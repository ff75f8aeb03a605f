package reaper

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Command runs a program to its end, as os/exec does, where a Reaper owns wait(2). If this process ends before, however it
// does, the program is killed: its successor must not find another at work on the same things.
type Command struct {
	Path string   // absolute, or looked up in PATH
	Args []string // without argv[0]
	Env  []string // nil: this process's
	Dir  string
	// Stdin, Stdout, Stderr: nil means /dev/null.
	Stdin, Stdout, Stderr *os.File
}

// Run starts c and waits for it. When ctx ends first, the program is killed and ctx's error returned once it is gone.
// The error is nil only when the status could be read; a non-zero exit is not an error.
func (c *Command) Run(ctx context.Context, r *Reaper) (Status, error) {
	path, err := exec.LookPath(c.Path)
	if err != nil {
		return Status{}, err
	}
	if path, err = filepath.Abs(path); err != nil {
		return Status{}, err
	}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return Status{}, err
	}
	defer null.Close()
	files := make([]uintptr, 3)
	for i, f := range []*os.File{c.Stdin, c.Stdout, c.Stderr} {
		if f == nil {
			f = null
		}
		files[i] = f.Fd()
	}
	env := c.Env
	if env == nil {
		env = os.Environ()
	}
	var status Status
	err = onThread(func() (err error) {
		status, err = c.run(ctx, r, path, env, files)
		return err
	})
	return status, err
}

// run is to be called on a thread that does nothing else: with it, and so with this process, the program dies.
func (c *Command) run(ctx context.Context, r *Reaper, path string, env []string, files []uintptr) (Status, error) {
	pidfd := -1 // so that the kill below can't reach another process: the Reaper may reap at any moment
	child, err := r.Fork(func() (int, error) {
		return syscall.ForkExec(path, append([]string{c.Path}, c.Args...), &syscall.ProcAttr{
			Dir: c.Dir, Env: env, Files: files, Sys: &syscall.SysProcAttr{PidFD: &pidfd, Pdeathsig: syscall.SIGKILL},
		})
	})
	if err != nil {
		return Status{}, fmt.Errorf("%s %s: %w", c.Path, strings.Join(c.Args, " "), err)
	}
	if pidfd >= 0 {
		defer unix.Close(pidfd)
	}
	s, err := child.Wait(ctx)
	if err != nil {
		_ = unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0) // ESRCH: it has just ended
		<-child.Done()
		return child.status, err
	}
	return s, nil
}

// onThread runs f on a thread that ends with it.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked
		if unix.Gettid() != unix.Getpid() {
			done <- f()
			return
		}
		defer runtime.UnlockOSThread() // the main thread would not end
		done <- onThread(f)
	}()
	return <-done
}
