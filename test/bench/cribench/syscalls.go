package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// counted are the system calls whose number says what a pod costs besides CPU: programs executed, and waiting for the disk.
const counted = "execve,execveat,fsync,fdatasync,syncfs,sync"

var call = regexp.MustCompile(`^(?:\d+ +)?([a-z_0-9]+)\(.*= 0`)

// syscalls counts them while pods go through their life, by strace(1) on the daemon and what it starts.
func syscalls(ctx context.Context, d *daemon, _ size, r *result) error {
	const pods = 3
	file := filepath.Join(d.dir, "strace")
	defer os.Remove(file)
	args := []string{"-f", "-q", "-e", "trace=" + counted, "-o", file}
	for _, pid := range d.group.members() {
		args = append(args, "-p", strconv.Itoa(pid))
	}
	var said bytes.Buffer
	c := exec.CommandContext(ctx, "strace", args...)
	c.Stderr = &said
	if err := c.Start(); err != nil {
		return fmt.Errorf("strace: %w", err)
	}
	defer func() {
		_ = c.Process.Signal(unix.SIGINT)
		_ = c.Wait()
	}()
	if err := attached(d.pid(), c.Process.Pid); err != nil {
		return fmt.Errorf("%w: %s", err, said.String())
	}
	count := func(what string, from, to int64) error {
		n, err := countCalls(file, from, to)
		for name, k := range n {
			if r.Syscalls == nil {
				r.Syscalls = map[string]float64{}
			}
			r.Syscalls[what+" "+name] = float64(k) / pods
		}
		return err
	}
	list := make([]*pod, pods)
	for i := range list {
		var err error
		if list[i], err = d.begin(ctx, d.next(), limits{}, nil); err != nil {
			return err
		}
	}
	started := fileSize(file)
	for _, p := range list {
		if err := d.end(ctx, p, nil); err != nil {
			return err
		}
	}
	return errors.Join(count("start", 0, started), count("end", started, fileSize(file)))
}

// attached waits until pid is traced by tracer.
func attached(pid, tracer int) error {
	want := fmt.Sprintf("TracerPid:\t%d\n", tracer)
	for range 500 {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if err != nil {
			return err
		}
		if strings.Contains(string(b), want) {
			return nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return errors.New("strace doesn't attach")
}

func fileSize(name string) int64 {
	st, err := os.Stat(name)
	if err != nil {
		return 0
	}
	return st.Size()
}

// countCalls counts the calls that succeeded in a part of strace's output, programs and syncs.
func countCalls(file string, from, to int64) (map[string]int, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	n := map[string]int{"execs": 0, "syncs": 0}
	at := int64(0)
	for s := bufio.NewScanner(f); s.Scan(); {
		at += int64(len(s.Bytes())) + 1
		if at <= from || at > to {
			continue
		}
		switch l := s.Text(); {
		case strings.Contains(l, "<... exec") && strings.HasSuffix(l, "= 0"), call.MatchString(l) && strings.Contains(l, "exec"):
			n["execs"]++
		case strings.Contains(l, "sync resumed>") && strings.HasSuffix(l, "= 0"), call.MatchString(l):
			n["syncs"]++
		}
	}
	return n, nil
}
