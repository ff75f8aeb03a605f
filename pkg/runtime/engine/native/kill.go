package native

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	// killRounds bounds how often a v1 cgroup is searched for processes that were forked meanwhile.
	killRounds = 100
	// calmRounds is how many of them go without freezing.
	calmRounds = 5
)

// Kill implements engine.Container.
func (c *container) Kill(ctx context.Context) error {
	err := c.killCgroup(ctx)
	// The first process also ends without a cgroup, and takes its pid namespace along.
	// NotFound: it is dead, and perhaps not yet reaped.
	if sig := c.init.Signal(unix.SIGKILL); err == nil && sig != nil && !errdefs.IsNotFound(sig) {
		err = sig
	}
	if err != nil {
		return fmt.Errorf("kill container %s: %w", c.id, err)
	}
	return nil
}

func (c *container) killCgroup(ctx context.Context) error {
	if unified := c.cgroup.Dir(""); unified != "" {
		err := write(unified+"/cgroup.kill", "1") // Linux 5.14, also beside v1 hierarchies
		if errors.Is(err, unix.ENODEV) {
			return nil // the cgroup was removed after the file was opened
		}
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if _, err := os.Stat(unified); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return killTree(ctx, unified, unified+"/cgroup.freeze", "1", "0")
	}
	if dir := c.cgroup.Dir("freezer"); dir != "" {
		return killTree(ctx, dir, dir+"/freezer.state", "FROZEN", "THAWED")
	}
	cg := c.cgroup.Cgroup()
	if cg == nil {
		return nil
	}
	for _, dir := range cg.V1 {
		return killTree(ctx, dir, "", "", "")
	}
	return nil
}

// killTree kills all processes of a cgroup and of those below it; it does not wait until they are gone. A process with a
// SIGKILL pending can't fork any more (copy_process in the kernel's fork.c), so nobody is left out as soon as a round
// finds only processes that the round before has signalled. What forks faster than that is frozen while it is searched;
// not from the first, since what is frozen again and again has no time to die.
func killTree(ctx context.Context, dir, freezer, freeze, thaw string) error {
	var before map[int]bool
	for round := range killRounds {
		if freezer != "" && round >= calmRounds {
			if err := write(freezer, freeze); err != nil {
				return ignoreGone(err)
			}
		}
		found, signalled, err := killOnce(dir)
		if freezer != "" { // also what somebody else has frozen can't die
			if err := write(freezer, thaw); err != nil {
				return ignoreGone(err)
			}
		}
		if err != nil || subset(found, before) {
			return err
		}
		before = signalled
		if round < calmRounds {
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond): // let those killed go
		}
	}
	return fmt.Errorf("cgroup %s: new processes are there after %d rounds of killing", dir, killRounds)
}

func subset(of, all map[int]bool) bool {
	for pid := range of {
		if !all[pid] {
			return false
		}
	}
	return true
}

// killOnce sends SIGKILL to every process in dir and below, and returns which there were, and which of them got it.
func killOnce(dir string) (found, signalled map[int]bool, err error) {
	found, signalled = map[int]bool{}, map[int]bool{}
	err = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return ignoreGone(err)
		}
		b, err := os.ReadFile(p + "/cgroup.procs")
		if err != nil {
			return ignoreGone(err)
		}
		pids := pidList(b)
		for _, pid := range pids {
			found[pid] = true
		}
		for chunk := range slices.Chunk(pids, 256) { // bounds the open pidfds
			if err := killIn(p, chunk, signalled); err != nil {
				return err
			}
		}
		return nil
	})
	return found, signalled, err
}

// pidList parses cgroup.procs. 0 stands for a process of a pid namespace that this process can't see.
func pidList(b []byte) []int {
	var pids []int
	for _, f := range strings.Fields(string(b)) {
		if pid, err := strconv.Atoi(f); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids
}

// killIn kills those of pids that are still in the cgroup once there are pidfds of them, and so never a process that
// has got one of the pids since; it adds them to signalled.
func killIn(dir string, pids []int, signalled map[int]bool) error {
	fds := map[int]int{}
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	for _, pid := range pids {
		fd, err := unix.PidfdOpen(pid, 0)
		if err == nil {
			fds[pid] = fd
		} else if !errors.Is(err, unix.ESRCH) && !errors.Is(err, unix.EINVAL) { // ended
			return err
		}
	}
	b, err := os.ReadFile(dir + "/cgroup.procs")
	if err != nil {
		return ignoreGone(err)
	}
	for _, pid := range pidList(b) {
		if fd, ok := fds[pid]; ok {
			if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
			signalled[pid] = true
		}
	}
	return nil
}

func ignoreGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

func write(path, value string) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	for err == unix.EINTR {
		fd, err = unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte(value))
	for err == unix.EINTR {
		_, err = unix.Write(fd, []byte(value))
	}
	if err != nil {
		return &fs.PathError{Op: "write", Path: path, Err: err}
	}
	return nil
}
