package monitor

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/reaper"
)

const busybox = "/bin/busybox"

// forkEngine runs programs of the host: just enough of an engine to test what lies around one. Create forks a shell
// that waits on fd 3 for Start.
type forkEngine struct{ r *reaper.Reaper }

func (e forkEngine) Name() string { return "fork" }

type forkContainer struct {
	e      forkEngine
	p      *forkProcess
	start  *os.File
	args   []string
	cgroup *engine.Cgroup

	started bool
	mu      sync.Mutex
	execs   []*forkProcess
}

type forkProcess struct {
	child    *reaper.Child
	pidfd    int
	terminal *os.File
}

func (p *forkProcess) Pid() int             { return p.child.Pid() }
func (p *forkProcess) Child() *reaper.Child { return p.child }
func (p *forkProcess) Terminal() *os.File   { return p.terminal }
func (p *forkProcess) Signal(sig unix.Signal) error {
	if err := unix.PidfdSendSignal(p.pidfd, sig, nil, 0); err != nil {
		return fmt.Errorf("%w: %w", err, errdefs.ErrNotFound)
	}
	return nil
}

func (e forkEngine) Create(ctx context.Context, c *engine.Config) (engine.Container, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if c.FinishCgroup != nil {
		if err := c.FinishCgroup(ctx); err != nil {
			w.Close()
			return nil, err
		}
	}
	var flags uintptr
	if ownPidNamespace(c.Spec) {
		flags = unix.CLONE_NEWPID
	}
	wait := []string{"sh", "-c", `read go <&3; exec 3<&-; exec "$@"`, "sh"}
	p, err := e.fork(c.Spec.Process, wait, flags, c.Cgroup, r, c.Stdin, c.Stdout, c.Stderr)
	if err != nil {
		return nil, err
	}
	return &forkContainer{e: e, p: p, start: w, args: c.Spec.Process.Args, cgroup: c.Cgroup}, nil
}

func (e forkEngine) fork(proc *specs.Process, wrap []string, flags uintptr, cg *engine.Cgroup, fd3 *os.File, stdio ...*os.File) (*forkProcess, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	p := &forkProcess{}
	sys := &syscall.SysProcAttr{Setsid: true, Cloneflags: flags, PidFD: &p.pidfd}
	files := make([]uintptr, 3, 4)
	for i, f := range stdio {
		if f == nil {
			f = null
		}
		files[i] = f.Fd()
	}
	if proc.Terminal {
		master, slave, err := openPTY()
		if err != nil {
			return nil, err
		}
		defer slave.Close()
		p.terminal = master
		files[0], files[1], files[2] = slave.Fd(), slave.Fd(), slave.Fd()
		sys.Setctty = true
	}
	if fd3 != nil {
		files = append(files, fd3.Fd())
	}
	if cg != nil && cg.Unified != "" {
		dir, err := os.Open(cg.Unified)
		if err != nil {
			return nil, err
		}
		defer dir.Close()
		sys.UseCgroupFD, sys.CgroupFD = true, int(dir.Fd())
	}
	argv := append(append([]string{"busybox"}, wrap...), proc.Args...)
	p.child, err = e.r.Fork(func() (int, error) {
		return syscall.ForkExec(busybox, argv, &syscall.ProcAttr{Env: proc.Env, Files: files, Sys: sys})
	})
	if err != nil {
		return nil, err
	}
	if cg != nil {
		for _, dir := range cg.V1 {
			_ = os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(p.Pid())), 0)
		}
	}
	return p, nil
}

func openPTY() (master, slave *os.File, err error) {
	if master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		return nil, nil, err
	}
	if err = unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err == nil {
		var n int
		if n, err = unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN); err == nil {
			slave, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
		}
	}
	if err != nil {
		master.Close()
	}
	return master, slave, err
}

func (c *forkContainer) Process() engine.Process { return c.p }

func (c *forkContainer) Start(context.Context) error {
	defer c.start.Close()
	c.started = true
	if len(c.args) > 0 && c.args[0] == "/missing" {
		_ = c.p.Signal(unix.SIGKILL)
		return fmt.Errorf("execve /missing: %w", errdefs.ErrNotFound)
	}
	_, err := c.start.Write([]byte("\n"))
	return err
}

func (c *forkContainer) Exec(ctx context.Context, x *engine.ExecConfig) (engine.Process, error) {
	cg := x.Cgroup
	if cg == nil {
		cg = c.cgroup
	}
	p, err := c.e.fork(x.Process, nil, 0, cg, nil, x.Stdin, x.Stdout, x.Stderr)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.execs = append(c.execs, p)
	return p, nil
}

func (c *forkContainer) Kill(context.Context) error {
	if c.start != nil {
		c.start.Close()
	}
	_ = c.p.Signal(unix.SIGKILL)
	if c.cgroup != nil && c.cgroup.Unified != "" {
		return os.WriteFile(filepath.Join(c.cgroup.Unified, "cgroup.kill"), []byte("1"), 0)
	}
	return nil
}

func (c *forkContainer) Delete(context.Context) error {
	if c.p.pidfd >= 0 {
		unix.Close(c.p.pidfd)
		c.p.pidfd = -1
	}
	return nil
}

type forkSaved struct {
	Pid    int            `json:"pid"`
	Args   []string       `json:"args"`
	Cgroup *engine.Cgroup `json:"cgroup"`
	Start  bool           `json:"start"`
}

func (c *forkContainer) Save() (*engine.Saved, error) {
	d := forkSaved{Pid: c.p.Pid(), Args: c.args, Cgroup: c.cgroup, Start: !c.started}
	s := &engine.Saved{Files: []int{c.p.pidfd}}
	if d.Start {
		s.Files = append(s.Files, int(c.start.Fd()))
	}
	for _, x := range c.execs {
		s.Files, s.Sessions = append(s.Files, x.pidfd), append(s.Sessions, x.Pid())
	}
	var err error
	s.Data, err = json.Marshal(d)
	return s, err
}

func (e forkEngine) Adopt(_ context.Context, s *engine.Saved) (*engine.Adopted, error) {
	var d forkSaved
	if err := json.Unmarshal(s.Data, &d); err != nil {
		return nil, err
	}
	attend := func(pid, fd int) *forkProcess {
		child, err := e.r.Attend(pid, fd)
		if err != nil {
			panic(err)
		}
		return &forkProcess{child: child, pidfd: fd}
	}
	c := &forkContainer{e: e, p: attend(d.Pid, s.Files[0]), args: d.Args, cgroup: d.Cgroup, started: !d.Start}
	a := &engine.Adopted{Container: c, Pending: d.Start}
	rest := s.Files[1:]
	if d.Start {
		c.start, rest = os.NewFile(uintptr(rest[0]), "start"), rest[1:]
	}
	for i, pid := range s.Sessions {
		x := attend(pid, rest[i])
		c.execs, a.Sessions = append(c.execs, x), append(a.Sessions, x)
	}
	return a, nil
}
