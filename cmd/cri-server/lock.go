package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/holder"
)

// lockDir makes dir and takes it for this process until the file is closed; the kernel lets go of it when the process
// ends, however it does. A second server learns who holds it.
func lockDir(dir string, mode os.FileMode) (*os.File, error) {
	if err := os.MkdirAll(dir, mode); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, "cri-server.lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	if err := flock(f); err != nil {
		defer f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		who := holder.Of(f)
		if who == "" {
			b, _ := io.ReadAll(io.LimitReader(f, 32))
			who = "pid " + strings.TrimSpace(string(b))
		}
		return nil, fmt.Errorf("%s is in use by another cri-server: %s is held by %s: %w", dir, path, who, errdefs.ErrAlreadyExists)
	}
	// The pid is for the message only; a full disk must not keep a server from its start.
	pid := strconv.Itoa(os.Getpid()) + "\n"
	if _, err = f.WriteAt([]byte(pid), 0); err == nil {
		err = f.Truncate(int64(len(pid)))
	}
	if err != nil && !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

// childTime is how long a lock may outlast the process that took it.
const childTime = 5 * time.Second

// flock takes the lock, for which it waits while it is not a server's but of a child of one that was killed, see holder.Gone.
func flock(f *os.File) error {
	for end := time.Now().Add(childTime); ; time.Sleep(2 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err != unix.EWOULDBLOCK || time.Now().After(end) || !holder.Gone(f) {
			return err
		}
	}
}
