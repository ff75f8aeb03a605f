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

// killRounds bounds how often a v1 cgroup is searched for processes that were forked meanwhile, where it can't be frozen.
const killRounds = 100

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
	cg := c.cgroup
	switch {
	case cg == nil:
		return nil
	case cg.Unified != "":
		err := write(cg.Unified+"/cgroup.kill", "1") // Linux 5.14, also beside v1 hierarchies
		if errors.Is(err, unix.ENODEV) {
			return nil // the cgroup was removed after the file was opened
		}
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if _, err := os.Stat(cg.Unified); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return killTree(ctx, cg.Unified, cg.Unified+"/cgroup.freeze", "1", "0")
	}
	if dir := cg.V1["freezer"]; dir != "" {
		return killTree(ctx, dir, dir+"/freezer.state", "FROZEN", "THAWED")
	}
	for _, dir := range cg.V1 {
		return killTree(ctx, dir, "", "", "")
	}
	return nil
}

// killTree kills all processes of a cgroup and of those below it. Where the cgroup can be frozen nothing forks while it
// is searched; the signals take effect when it thaws.
func killTree(ctx context.Context, dir, freezer, freeze, thaw string) (err error) {
	for range killRounds {
		if freezer != "" {
			if err := write(freezer, freeze); err != nil {
				return ignoreGone(err)
			}
		}
		n, err := killOnce(dir)
		if freezer != "" {
			if err := write(freezer, thaw); err != nil {
				return ignoreGone(err)
			}
		}
		if err != nil || n == 0 {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond): // let those killed go
		}
	}
	return fmt.Errorf("cgroup %s: processes are left after %d rounds", dir, killRounds)
}

// killOnce sends SIGKILL to every process in dir and below, and returns how many there were.
func killOnce(dir string) (n int, err error) {
	err = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return ignoreGone(err)
		}
		b, err := os.ReadFile(p + "/cgroup.procs")
		if err != nil {
			return ignoreGone(err)
		}
		pids := pidList(b)
		n += len(pids)
		for chunk := range slices.Chunk(pids, 256) { // bounds the open pidfds
			if err := killIn(p, chunk); err != nil {
				return err
			}
		}
		return nil
	})
	return n, err
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
// has got one of the pids since.
func killIn(dir string, pids []int) error {
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
	f, err := os.OpenFile(path, unix.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(value)
	return err
}
