package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/reaper"
)

// upgrader is monitor.Upgrader.
type upgrader struct {
	o *options
	r *reaper.Reaper
}

func (u *upgrader) Prepare(program *os.File) (*os.File, error) {
	st, err := program.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Mode()&0o111 == 0 {
		return nil, fmt.Errorf("%s is no program", program.Name())
	}
	if _, err := program.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	fd, err := seal(program)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), memfdName), nil
}

// Check runs the program with --check-state.
func (u *upgrader) Check(ctx context.Context, program *os.File, header []byte) error {
	in, err := memfile("header", header)
	if err != nil {
		return err
	}
	defer in.Close()
	said, err := memfile("stderr", nil)
	if err != nil {
		return err
	}
	defer said.Close()
	c := reaper.Command{Path: selfFD(program), Args: []string{"--check-state"}, Stdin: in, Stderr: said}
	status, err := c.Run(ctx, u.r)
	if err != nil {
		return err
	}
	if status.Code() != 0 {
		text, _ := io.ReadAll(io.NewSectionReader(said, 0, 4096))
		return fmt.Errorf("exit code %d: %s", status.Code(), strings.TrimSpace(string(text)))
	}
	return nil
}

// Exec goes on in the program. Signals that come before it can handle them are ignored: they would end it.
func (u *upgrader) Exec(program *os.File, state int) error {
	signal.Ignore(unix.SIGTERM, unix.SIGINT)
	err := syscall.Exec(selfFD(program), []string{
		os.Args[0], "--socket", u.o.socket, "--state-dir", u.o.stateDir, "--state-fd", strconv.Itoa(state),
	}, os.Environ())
	u.o.catch()
	return err
}

func selfFD(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }

func memfile(name string, content []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.Write(content); err != nil {
		f.Close()
		return nil, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
