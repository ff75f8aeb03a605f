package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	sd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// systemdTimeout bounds one job of systemd.
const systemdTimeout = 30 * time.Second

// aboveAll is the slice above those of all runtimes.
const aboveAll = "cribench.slice"

// Rows of what systemd does for a pod: CPU of it and its bus, which is in no runtime's cgroup, its jobs, and the calls to it.
const (
	systemdCPU   = "systemd"
	systemdJobs  = "systemd jobs"
	systemdCalls = "systemd calls"
)

// units are what a runtime has in systemd with that cgroup driver: cribench-tN.slice holds the scope of the daemon and, for
// each pod, a slice that is there before the pod, as kubelet makes it. Those of ended pods are stopped later, when nothing is
// measured.
type units struct {
	conn   *sd.Conn // systemd's own socket, so that what the bench asks for is no work of the bus
	bus    int      // pid of dbus-daemon
	daemon *group   // the daemon's in the cpuacct hierarchy of cgroup v1, of which systemd makes no use; else nil

	mu    sync.Mutex
	ended []string
}

// group is the cgroup of a runtime, with systemd a slice.
func (o options) group(name string) (*group, error) {
	if !o.systemd {
		return newGroup(parent() + "/" + name)
	}
	ctx, cancel := context.WithTimeout(context.Background(), systemdTimeout)
	defer cancel()
	conn, err := sd.NewSystemdConnectionContext(context.Background()) // it ends with its context
	if err != nil {
		return nil, fmt.Errorf("systemd: %w", err)
	}
	u := &units{conn: conn}
	p, err := conn.GetServicePropertyContext(ctx, "dbus.service", "MainPID")
	if err != nil {
		return nil, fmt.Errorf("systemd: the bus: %w", err)
	}
	pid, _ := p.Value.Value().(uint32)
	u.bus = int(pid)
	g := &group{path: "/" + aboveAll + "/cribench-" + name + ".slice", units: u}
	if !cgroup2() {
		if u.daemon, err = newGroup(parent() + "/" + name); err != nil {
			return nil, err
		}
		// For containers, whose runtimes put them there: it must not go when a pod does.
		if err := os.MkdirAll(filepath.Join(accounting(), g.path), 0o755); err != nil {
			return nil, err
		}
	}
	return g, u.startSlice(path.Base(g.path))
}

// podSlice is a pod's slice, below g's, by its full path, as kubelet names it.
func (g *group) podSlice(name string) string {
	return fmt.Sprintf("%s/%s-%s.slice", g.path, strings.TrimSuffix(path.Base(g.path), ".slice"), strings.ReplaceAll(name, "-", ""))
}

// enter is c in g's daemon cgroup from its first moment on, with the same process id.
func (g *group) enter(c *exec.Cmd) *exec.Cmd {
	args := append([]string{c.Path}, c.Args[1:]...)
	own := g
	if g.units != nil {
		own = g.units.daemon
	}
	if own != nil {
		args = append([]string{"/bin/sh", "-c", `echo $$ >"$0" && exec "$@"`, own.procs()}, args...)
	}
	if g.units != nil {
		args = append([]string{"systemd-run", "--quiet", "--collect", "--scope", "--slice=" + path.Base(g.path), "--property=Delegate=yes", "--"}, args...)
	}
	return exec.Command(args[0], args[1:]...)
}

// startSlice makes a slice with what kubelet asks for, and waits for it.
func (u *units) startSlice(name string) error {
	props := []sd.Property{sd.PropDescription("cribench " + name)}
	above := strings.TrimSuffix(name, ".slice")
	if i := strings.LastIndex(above, "-"); i > 0 {
		props = append(props, sd.PropWants(above[:i]+".slice"))
	}
	props = append(props, sd.Property{Name: "DefaultDependencies", Value: dbus.MakeVariant(false)})
	for _, what := range []string{"MemoryAccounting", "CPUAccounting", "IOAccounting", "TasksAccounting"} {
		props = append(props, sd.Property{Name: what, Value: dbus.MakeVariant(true)})
	}
	return job(func(ctx context.Context, done chan<- string) (int, error) {
		return u.conn.StartTransientUnitContext(ctx, name, "replace", props, done)
	}, "start "+name)
}

func (u *units) stop(name string) error {
	err := job(func(ctx context.Context, done chan<- string) (int, error) {
		return u.conn.StopUnitContext(ctx, name, "replace", done)
	}, "stop "+name)
	var unknown dbus.Error
	if errors.As(err, &unknown) && unknown.Name == "org.freedesktop.systemd1.NoSuchUnit" {
		return nil // the runtime did it
	}
	return err
}

func job(ask func(ctx context.Context, done chan<- string) (int, error), what string) error {
	ctx, cancel := context.WithTimeout(context.Background(), systemdTimeout)
	defer cancel()
	done := make(chan string, 1)
	if _, err := ask(ctx, done); err != nil {
		return fmt.Errorf("systemd: %s: %w", what, err)
	}
	select {
	case r := <-done:
		if r != "done" {
			return fmt.Errorf("systemd: %s: %s", what, r)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("systemd: %s: %w", what, ctx.Err())
	}
}

// later has the slice of an ended pod stopped by the next flush.
func (u *units) later(name string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.ended = append(u.ended, name)
}

// flush stops the slices of ended pods. Call it while nothing is measured.
func (g *group) flush() error {
	if g.units == nil {
		return nil
	}
	g.units.mu.Lock()
	list := g.units.ended
	g.units.ended = nil
	g.units.mu.Unlock()
	return each(len(list), 8, func(i int) error { return g.units.stop(list[i]) })
}

// close stops the runtime's slice, and that above, when all have ended, and removes what is left of them in hierarchies of
// which systemd makes no use.
func (g *group) close() error {
	errs := []error{g.flush(), g.units.stop(path.Base(g.path)), g.units.stop(aboveAll)}
	g.units.conn.Close()
	if g.units.daemon != nil {
		errs = append(errs, g.units.daemon.remove())
	}
	errs = append(errs, (&group{path: g.path}).remove())
	for _, root := range hierarchies() {
		_ = os.Remove(filepath.Join(root, aboveAll)) // by the last
	}
	return errors.Join(errs...)
}

// cpu is what systemd and dbus-daemon have used. Processes' clocks tell it to the ns; see clock_getcpuclockid(3) and
// include/linux/posix-timers_types.h (CPUCLOCK_SCHED).
func (u *units) cpu() time.Duration {
	var sum time.Duration
	for _, pid := range []int{1, u.bus} {
		var at unix.Timespec
		if pid != 0 && unix.ClockGettime(int32(^pid<<3|2), &at) == nil {
			sum += time.Duration(at.Nano())
		}
	}
	return sum
}

// settled is cpu when systemd has come to rest: it ends a scope after the call that made it empty has returned.
func (u *units) settled(ctx context.Context) time.Duration {
	const still = 200 * time.Millisecond
	last := u.cpu()
	for range 50 {
		select {
		case <-ctx.Done():
			return last
		case <-time.After(still):
		}
		now := u.cpu()
		if now-last < 100*time.Microsecond {
			return now
		}
		last = now
	}
	return last
}

// jobs is how many jobs systemd has taken on since it runs, such as to start or to stop a unit.
func (u *units) jobs() int {
	s, err := u.conn.GetManagerProperty("NInstalledJobs") // "@u 12" or "12"
	if err != nil {
		return 0
	}
	var n int
	_, _ = fmt.Sscan(strings.TrimPrefix(s, "@u "), &n)
	return n
}

// systemdWork takes pods, whose slices are there before and stay until after, through their life and counts systemd's CPU.
func systemdWork(ctx context.Context, d *daemon, s size, r *result) error {
	if d.group.units == nil {
		return nil
	}
	pods := max(4, s.Cycles)
	first := d.nextFew(pods)
	before := d.group.units.settled(ctx)
	jobs := d.group.units.jobs()
	if err := d.lives(ctx, first, pods); err != nil {
		return err
	}
	record(&r.CPU, systemdCPU, ms(d.group.units.settled(ctx)-before)/float64(pods))
	record(&r.CPU, systemdJobs, float64(d.group.units.jobs()-jobs)/float64(pods))
	return systemdMessages(ctx, d, r)
}

// lives takes pods, whose slices there are, through their life.
func (d *daemon) lives(ctx context.Context, first, pods int) error {
	for i := range pods {
		p, err := d.begin(ctx, first+i, limits{}, nil)
		if err != nil {
			return err
		}
		// Which takes long enough for the container's shell to set its trap: a pid 1 without ignores SIGTERM.
		if err := d.exec(ctx, p.container); err != nil {
			return err
		}
		if err := d.end(ctx, p, nil); err != nil {
			return err
		}
	}
	return nil
}

// systemdMessages counts the method calls that reach systemd while pods live, by its own socket and by the bus: strace(1) sees it
// read them.
func systemdMessages(ctx context.Context, d *daemon, r *result) error {
	const pods = 4
	first := d.nextFew(pods)
	file := filepath.Join(d.dir, "strace-systemd")
	defer os.Remove(file)
	c := exec.CommandContext(ctx, "strace", "-q", "-s", "2", "-e", "trace=recvmsg", "-o", file, "-p", "1")
	if err := c.Start(); err != nil {
		return fmt.Errorf("strace: %w", err)
	}
	end := sync.OnceFunc(func() { _ = c.Process.Signal(unix.SIGINT); _ = c.Wait() })
	defer end()
	if err := attached(1, c.Process.Pid); err != nil {
		return err
	}
	if err := d.lives(ctx, first, pods); err != nil {
		return err
	}
	d.group.units.settled(ctx)
	end()
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	record(&r.CPU, systemdCalls, float64(methodCalls(string(b)))/pods)
	return nil
}

// methodCall is the first read of a message whose type is 1: see the D-Bus specification, "Message Format". systemd reads a
// header first, by itself.
var methodCall = regexp.MustCompile(`^recvmsg\(\d+, .*?iov_base="[lB]\\1"?\.*, iov_len=(16|24)\}`)

func methodCalls(strace string) (n int) {
	for l := range strings.Lines(strace) {
		if methodCall.MatchString(l) {
			n++
		}
	}
	return n
}

// systemdSection is the page's part about the run with systemd, from systemd.json beside the other results; empty without.
func systemdSection(dir string) string {
	r, err := readResults(filepath.Join(dir, "systemd.json"))
	if errors.Is(err, os.ErrNotExist) {
		return ""
	} else if err != nil {
		return fmt.Sprintf("\n## With the systemd cgroup driver\n\n%v\n", err)
	}
	var s strings.Builder
	fmt.Fprintf(&s, "\n## With the systemd cgroup driver\n\nIn a test node with systemd as its init (hack/node), on the same kernel: a run of %s, `%s`; load average %s before, %s after. ",
		r.Time.UTC().Format("2006-01-02"), r.Command, r.Load[0], r.Load[1])
	fmt.Fprintf(&s, "%d passes, %d pods one after the other per pass, in parallel %d per worker, %d of runtimes that take long. A pod's slice is there before it, as kubelet makes it. "+
		"CPU is that of the runtime's slice, with its daemon and pods; what systemd and its bus do for a pod beside that has a row of its own.\n",
		r.Size.Passes, r.Size.Cycles, r.Size.PerWorker, cmp.Or(r.Size.PeersWorker, r.Size.PerWorker))
	writeGrids(&s, "###", r)
	s.WriteString(failures(r))
	return s.String()
}
