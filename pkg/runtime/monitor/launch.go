package monitor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/seed-9a14075a/cri-server/pkg/faultpoint"
)

// launchTime bounds the start of a cri-monitor, which mostly takes some milliseconds. On a machine that is so busy that it
// takes seconds, one that is given up would only begin anew.
const launchTime = time.Minute

// unitFile is in the state directory of a cri-monitor that a service manager has started, and after its death will
// start again; only that one gets the descriptors that the manager has kept.
const unitFile = "unit"

// unitTime is how long the service manager may take for that.
const unitTime = 5 * time.Second

func noteUnit(dir string, unit bool) error {
	name := filepath.Join(dir, unitFile)
	if unit {
		return os.WriteFile(name, nil, 0o600)
	}
	if err := os.Remove(name); err != nil && !os.IsNotExist(err) {
		return err
	}
	return nil
}

// awaitUnit waits until the service manager has started cri-monitor, if it does that.
func awaitUnit(ctx context.Context, c LaunchConfig) error {
	var err error
	for end := time.Now().Add(unitTime); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(2 * time.Millisecond) {
		if err = answers(ctx, c.Socket); !errdefs.IsUnavailable(err) {
			break
		}
		if _, serr := os.Stat(filepath.Join(c.StateDir, unitFile)); serr != nil {
			break
		}
	}
	return err
}

// LaunchConfig says how cri-monitor is started where no unit of the init system does it.
type LaunchConfig struct {
	// Path is the cri-monitor binary.
	Path string
	// Socket and StateDir are as in ServerConfig.
	Socket, StateDir string
	// LogFile takes its own log, appended to; empty: it is thrown away.
	LogFile string
	// Env is its environment; nil: empty but for PATH. It is inherited by nothing in a container.
	Env []string
	// Packer makes what Keep keeps smaller; nil: it is kept as it comes. Only one goroutine uses it.
	Packer Packer
}

// Packer is lossless compression. Pack may leave data as it is, and says so.
type Packer interface {
	Pack(data []byte) (packed []byte, ok bool)
	Unpack(packed []byte) ([]byte, error)
}

// Launch connects to the cri-monitor that serves c.Socket, and starts one first if there is none. A started one is
// detached: it is no child of this process, in a session of its own, and stays when this process ends. Where two
// processes launch at the same time both get the one that was first.
func Launch(ctx context.Context, c LaunchConfig) (*Client, error) {
	if err := launch(ctx, c); err != nil {
		return nil, err
	}
	return Dial(ctx, c.Socket)
}

// launch returns when a cri-monitor answers.
func launch(ctx context.Context, c LaunchConfig) error {
	ctx, cancel := context.WithTimeout(ctx, launchTime)
	defer cancel()
	if err := awaitUnit(ctx, c); !errdefs.IsUnavailable(err) {
		return err
	}
	args := []string{"--socket", c.Socket, "--state-dir", c.StateDir, "--detach"}
	if c.LogFile != "" {
		args = append(args, "--log-file", c.LogFile)
	}
	// It returns when its detached child serves the socket.
	cmd := exec.CommandContext(ctx, c.Path, args...)
	cmd.Dir, cmd.Env = "/", c.Env
	if cmd.Env == nil {
		cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	}
	cmd.Env = append(cmd.Env, faultpoint.Environ()...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	cmd.WaitDelay = time.Second
	started := cmd.Run()
	err := answers(ctx, c.Socket)
	switch {
	case err == nil:
		return nil
	case started != nil && ctx.Err() != nil:
		return fmt.Errorf("start %s: it does not serve %s: %w", c.Path, c.Socket, ctx.Err())
	case started != nil:
		return fmt.Errorf("start %s: %w: %s", c.Path, started, strings.TrimSpace(stderr.String()))
	}
	return errors.Join(fmt.Errorf("start %s: it began and has gone", c.Path), err)
}

func answers(ctx context.Context, socket string) error {
	c, err := Dial(ctx, socket)
	if err == nil {
		err = c.Close()
	}
	return err
}
