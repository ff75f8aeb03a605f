package oci

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// spawn is a runtime command that leaves a process behind: create or exec.
type spawn struct {
	args    []string // without console socket and id
	pidFile string   // where the command writes the process's pid
	timeout time.Duration
	process *specs.Process

	stdin, stdout, stderr *os.File
}

// spawn runs the command, takes the terminal from its console socket and adopts the process.
func (c *container) spawn(ctx context.Context, s spawn) (*process, error) {
	defer os.Remove(s.pidFile)
	in := invocation{args: s.args, dir: c.dir, timeout: s.timeout, stdin: s.stdin, stdout: s.stdout, stderr: s.stderr}
	var tty *console
	if s.process.Terminal {
		var err error
		name := filepath.Base(s.pidFile) + ".sock"
		if tty, err = listen(c.dir, name, s.process.ConsoleSize); err != nil {
			return nil, fmt.Errorf("console socket: %w", err)
		}
		defer tty.close()
		// Relative to the working directory, since sun_path holds 108 bytes only (unix(7)).
		in.args = append(in.args, "--console-socket", name)
	} else if in.stderr == nil {
		null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
		if err != nil {
			return nil, err
		}
		defer null.Close()
		in.stderr = null // the process inherits it, so it can't be the file that captures messages
	}
	in.args = append(in.args, c.id)
	if err := c.engine.run(ctx, in); err != nil {
		if pid, none := readPid(s.pidFile); none == nil { // it failed, or was killed, after the fork
			if p, none := adopt(c.engine.reaper, pid); none == nil {
				p.kill()
			}
		}
		return nil, err
	}
	pid, err := readPid(s.pidFile)
	if err != nil {
		return nil, fmt.Errorf("pid file: %w", err)
	}
	p, err := adopt(c.engine.reaper, pid)
	if err != nil {
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	if tty == nil {
		return p, nil
	}
	if p.terminal, err = tty.master(ctx); err != nil {
		p.kill()
		return nil, fmt.Errorf("console: %w", err)
	}
	return p, nil
}

func readPid(path string) (int, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || pid <= 1 {
		return 0, fmt.Errorf("%s holds %q", filepath.Base(path), tail(b))
	}
	return pid, nil
}
