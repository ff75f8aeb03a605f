package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/faultpoint"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/monitor"
	"github.com/seed-9a14075a/cri-server/test/testnode"
)

// monitorDir is the state directory of cri-monitor on the node.
const monitorDir = "/run/cri-server/monitor"

// How often the workers rest for a full check, and for one without any pod, in rounds of the killer.
const (
	fullEvery  = 20
	emptyEvery = 120
)

// shares are how many of 100 rounds do what; the rest kill cri-server once.
type shares struct {
	monitor, monitorAt, upgrade, both, serverAt, starting int
	// most is how often the server is killed at most while it comes up.
	most int
}

// usual is what a run does; dense kills more often, the server while it comes up above all.
var (
	usual = shares{monitor: 10, monitorAt: 3, upgrade: 3, both: 8, serverAt: 16, starting: 14, most: 6}
	dense = shares{monitor: 18, monitorAt: 4, upgrade: 3, both: 10, serverAt: 15, starting: 35, most: 10}
)

// environ is what the programs of the node get for their fault points.
func (t *torture) environ() []string {
	if t.faults == "" {
		return nil
	}
	return []string{faultpoint.Variable + "=" + t.faults}
}

// kill kills until the run is over.
func (t *torture) kill(ctx context.Context) error {
	for round := 1; ctx.Err() == nil; round++ {
		if t.o.kills > 0 && t.tally.servers.Load() >= int64(t.o.kills) || time.Since(t.began) > t.o.length {
			return nil
		}
		began := time.Now()
		for t.oldest() > stuckTime/6 && ctx.Err() == nil { // a call is owed some time
			sleep(ctx, 20*time.Millisecond)
		}
		t.tally.owed.Add(int64(time.Since(began)))
		if err := t.round(ctx); err != nil {
			return err
		}
		began = time.Now()
		if err := t.check(ctx, round); err != nil {
			return err
		}
		t.tally.checking.Add(int64(time.Since(began)))
	}
	return nil
}

// check compares, after each round the lists only.
func (t *torture) check(ctx context.Context, round int) error {
	if err := t.checkLists(ctx); err != nil {
		return err
	}
	if round%fullEvery == 0 {
		if err := t.checkAll(ctx); err != nil {
			return err
		}
	}
	if round%emptyEvery == 0 {
		return t.checkEmpty(ctx)
	}
	return nil
}

// round does one thing to the programs; when it returns the server is ready.
func (t *torture) round(ctx context.Context) error {
	share := usual
	if t.o.dense {
		share = dense
	}
	n := t.killer.IntN(100)
	below := func(part int) bool { n -= part; return n < 0 }
	switch {
	case below(share.monitor):
		return t.killMonitor(ctx)
	case below(share.monitorAt) && t.faults != "":
		return t.killMonitorAt(ctx)
	case n < 0: // there are no fault points
		return t.upgrade(ctx)
	case below(share.upgrade):
		return t.upgrade(ctx)
	case below(share.both) && t.unit != nil:
		return t.killBoth(ctx)
	case n < 0 || below(share.serverAt):
		if t.faults != "" {
			return t.killServerAt(ctx)
		}
	case below(share.starting):
		return t.killStarting(ctx, share.most)
	case below(25) && t.faults != "" && t.o.errors:
		return t.inject(ctx)
	}
	sleep(ctx, t.moment(200*time.Millisecond))
	return t.restart(ctx)
}

// moment is a time up to most; short ones are likelier.
func (t *torture) moment(most time.Duration) time.Duration {
	return time.Duration(math.Pow(t.killer.Float64(), 2) * float64(most))
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// killServer kills the server that runs.
func (t *torture) killServer() error {
	t.trace("killer: cri-server %d", t.node.ServerPid())
	if err := t.node.KillServer(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	t.tally.servers.Add(1)
	t.trim()
	return nil
}

func (t *torture) restart(ctx context.Context) error {
	if err := t.killServer(); err != nil {
		return err
	}
	return t.start(ctx)
}

// start starts the server, which has died, and waits for it.
func (t *torture) start(ctx context.Context) error {
	err := t.node.StartServer(ctx)
	t.trace("killer: cri-server %d is ready: %v", t.node.ServerPid(), err)
	if err != nil && ctx.Err() != nil {
		return nil // the run is over
	}
	return err
}

// killStarting kills the server as usual, and then up to most that have not come up yet.
func (t *torture) killStarting(ctx context.Context, most int) error {
	sleep(ctx, t.moment(200*time.Millisecond))
	if err := t.killServer(); err != nil {
		return err
	}
	for range 1 + t.killer.IntN(most) {
		if err := t.node.LaunchServer(); err != nil {
			return err
		}
		sleep(ctx, t.moment(150*time.Millisecond))
		if err := t.killServer(); err != nil {
			return err
		}
		t.tally.starting.Add(1)
	}
	return t.start(ctx)
}

// monitorPid is the cri-monitor that runs, 0 when there is none.
func (t *torture) monitorPid() int {
	pids, parents := map[int]bool{}, map[int]int{}
	for _, p := range testnode.Descendants(os.Getppid()) {
		if !p.Zombie && strings.Contains(p.Cmdline, "cri-monitor --socket") && p.Comm == "cri-monitor" {
			pids[p.Pid], parents[p.Pid] = true, p.Parent
		}
	}
	for pid, parent := range parents {
		if !pids[parent] { // else it is about to become another program
			return pid
		}
	}
	return 0
}

// killMonitor kills cri-monitor while the server runs, and waits until both are back.
func (t *torture) killMonitor(ctx context.Context) error {
	sleep(ctx, t.moment(200*time.Millisecond))
	pid := t.monitorPid()
	if pid == 0 {
		return fmt.Errorf("there is no cri-monitor")
	}
	t.trace("killer: cri-monitor %d", pid)
	t.tally.monitors.Add(1)
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		return fmt.Errorf("kill cri-monitor: %w", err)
	}
	return t.monitorBack(ctx, pid)
}

// monitorBack waits for another cri-monitor than the one that was killed, and for a server that has it.
func (t *torture) monitorBack(ctx context.Context, pid int) error {
	for began := time.Now(); ctx.Err() == nil; sleep(ctx, 2*time.Millisecond) {
		if now := t.monitorPid(); now != 0 && now != pid {
			break
		}
		if time.Since(began) > 20*time.Second {
			return errors.New("cri-monitor does not come back")
		}
	}
	err := t.node.Ready(ctx)
	if err != nil && ctx.Err() != nil {
		return nil
	}
	return err
}

// killBoth kills both programs at once.
func (t *torture) killBoth(ctx context.Context) error {
	sleep(ctx, t.moment(200*time.Millisecond))
	pid := t.monitorPid()
	t.trace("killer: cri-monitor %d and cri-server", pid)
	if t.killer.IntN(2) == 0 {
		_ = unix.Kill(t.node.ServerPid(), unix.SIGKILL)
	}
	t.tally.monitors.Add(1)
	t.tally.both.Add(1)
	_ = unix.Kill(pid, unix.SIGKILL)
	return t.restart(ctx)
}

// upgrade has cri-monitor go on in the same program, as after an update of the package.
func (t *torture) upgrade(ctx context.Context) error {
	sleep(ctx, t.moment(100*time.Millisecond))
	one, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	c, err := monitor.Dial(one, filepath.Join(monitorDir, "monitor.sock"))
	if err != nil {
		return t.unlessOver(ctx, fmt.Errorf("upgrade: %w", err))
	}
	defer c.Close()
	pid := t.monitorPid()
	t.trace("killer: upgrade of cri-monitor %d", pid)
	v, err := c.Upgrade(one, t.monitor)
	if err != nil {
		return t.unlessOver(ctx, fmt.Errorf("upgrade: %w", err))
	}
	if now := t.monitorPid(); v.Pid != pid || now != pid {
		return fmt.Errorf("upgrade: it was process %d and is %d, %d", pid, v.Pid, now)
	}
	t.tally.upgrades.Add(1)
	return nil
}

func (t *torture) unlessOver(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// point chooses one of a program's fault points.
func (t *torture) point(ofMonitor bool) string {
	for {
		points := faultpoint.Points()
		p := points[t.killer.IntN(len(points))]
		if server := !strings.HasPrefix(p, "monitor.") || strings.HasPrefix(p, "monitor.client."); server != ofMonitor {
			return p
		}
	}
}

// killServerAt has the server die at a fault point, if it comes there within a moment, and sometimes at another one
// while it comes up.
func (t *torture) killServerAt(ctx context.Context) error {
	if err := t.arm("cri-server", faultpoint.Rule{Point: t.point(false), N: 1 + t.killer.IntN(3), Action: faultpoint.Kill}); err != nil {
		return err
	}
	select {
	case <-t.node.ServerExited():
		t.note("cri-server")
		t.tally.servers.Add(1)
	case <-ctx.Done():
		return nil
	case <-time.After(time.Second):
		if err := t.arm("cri-server"); err != nil {
			return err
		}
		return t.restart(ctx)
	}
	if t.killer.IntN(3) == 0 { // and again while it comes up
		if err := t.arm("cri-server", faultpoint.Rule{Point: "*", N: 1 + t.killer.IntN(12), Action: faultpoint.Kill}); err != nil {
			return err
		}
		if err := t.node.LaunchServer(); err != nil {
			return err
		}
		select {
		case <-t.node.ServerExited():
			t.note("cri-server")
			t.tally.starting.Add(1)
			t.tally.servers.Add(1)
		case <-time.After(500 * time.Millisecond):
			if err := t.killServer(); err != nil {
				return err
			}
		}
	}
	if err := t.arm("cri-server"); err != nil {
		return err
	}
	t.trim()
	return t.start(ctx)
}

// killMonitorAt has cri-monitor die at a fault point, if it comes there within a moment.
func (t *torture) killMonitorAt(ctx context.Context) error {
	pid := t.monitorPid()
	if pid == 0 { // it is not seen while its parent changes
		return t.monitorBack(ctx, 0)
	}
	if err := t.arm("cri-monitor", faultpoint.Rule{Point: t.point(true), N: 1 + t.killer.IntN(3), Action: faultpoint.Kill}); err != nil {
		return err
	}
	for began := time.Now(); time.Since(began) < time.Second && ctx.Err() == nil; sleep(ctx, 5*time.Millisecond) {
		if now := t.monitorPid(); now == 0 || now == pid {
			continue
		}
		break
	}
	if err := t.arm("cri-monitor"); err != nil {
		return err
	}
	if err := t.monitorBack(ctx, 0); err != nil {
		return err
	}
	if t.monitorPid() != pid {
		t.note("cri-monitor")
		t.tally.monitors.Add(1)
	}
	return nil
}

// inject has the server get errors at some fault points, until one has come or a moment is over.
func (t *torture) inject(ctx context.Context) error {
	const program = "cri-server"
	names := []string{"EIO", "ENOSPC", "EMFILE", "ENOMEM", "EINTR"}
	var rules []faultpoint.Rule
	for range 4 {
		rules = append(rules, faultpoint.Rule{Point: t.point(false), N: 1 + t.killer.IntN(2), Action: faultpoint.Action(names[t.killer.IntN(len(names))])})
	}
	if err := t.arm(program, rules...); err != nil {
		return err
	}
	var fired []string
	var err error
	for began := time.Now(); len(fired) == 0 && err == nil && time.Since(began) < time.Second && ctx.Err() == nil; {
		sleep(ctx, 20*time.Millisecond)
		fired, err = faultpoint.Fired(t.faults, program)
	}
	t.trace("killer: errors came: %v", fired)
	t.tally.injected.Add(int64(len(fired)))
	return errors.Join(err, t.arm(program), os.RemoveAll(filepath.Join(t.faults, program+".fired")))
}

func (t *torture) arm(program string, rules ...faultpoint.Rule) error {
	t.trace("killer: %s: %v", program, rules)
	_ = os.Remove(filepath.Join(t.faults, program+".hits")) // else it grows for the whole run
	return faultpoint.Arm(t.faults, program, rules...)
}

// note counts the fault points at which a program has died.
func (t *torture) note(program string) {
	fired, _ := faultpoint.Fired(t.faults, program)
	for _, f := range fired {
		point, _, _ := strings.Cut(f, " ")
		t.tally.points.Store(point, true)
		t.tally.fired.Add(1)
		if t.o.points != "" {
			appendLine(t.o.points, program+" "+point+" kill")
		}
	}
	_ = os.Remove(filepath.Join(t.faults, program+".fired"))
	t.trace("killer: %s died at %v", program, fired)
}
