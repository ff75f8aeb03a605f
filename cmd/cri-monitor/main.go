// Command cri-monitor is the process that holds containers: their parent, the reader of their output, the keeper of
// their exit codes. cri-server starts it, or a unit of the init system does, and it outlives every cri-server. See
// package monitor.
//
// It copies itself into a sealed memfd and runs from there, so that neither an upgrade of the package nor a container
// that finds its binary can touch it.
package main

import (
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/monitor"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/reaper"
)

// version is set by the linker.
var version = "dev"

type options struct {
	socket, stateDir, logFile string
	detach, version           bool
	state                     int
	checkState                bool

	terms chan os.Signal
}

// catch has requests to end delivered to terms.
func (o *options) catch() { signal.Notify(o.terms, unix.SIGTERM, unix.SIGINT) }

// The main thread runs nothing but main, which waits. The kernel has a signal for the process handled by one thread, which is
// the main thread if that will take it, and goes to no other if that one is in a system call that can't be interrupted: behind
// a file system that hangs, nobody would be asked to end.
func init() { runtime.LockOSThread() }

func main() {
	var o options
	flag.StringVar(&o.socket, "socket", "/run/cri-server/monitor.sock", "unix socket to serve")
	flag.StringVar(&o.stateDir, "state-dir", "/run/cri-server/monitor", "directory for the lock and the engines' files")
	flag.StringVar(&o.logFile, "log-file", "", "with --detach: append the log to this file")
	flag.BoolVar(&o.detach, "detach", false, "run in the background and return when the socket is served")
	flag.BoolVar(&o.version, "version", false, "print the version")
	flag.IntVar(&o.state, "state-fd", -1, "go on with what another cri-monitor has left in this descriptor; used by upgrades")
	flag.BoolVar(&o.checkState, "check-state", false, "tell by the exit code whether the state described on standard input can be gone on with")
	flag.Parse()
	if o.version {
		fmt.Println(version)
		return
	}
	done := make(chan error, 1)
	go func() { done <- run(&o) }()
	if err := <-done; err != nil {
		fmt.Fprintln(os.Stderr, "cri-monitor:", err)
		os.Exit(1)
	}
}

func run(o *options) error {
	if flag.NArg() > 0 {
		return fmt.Errorf("unexpected argument %q", flag.Arg(0))
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("it must run as root")
	}
	if o.checkState {
		header, err := io.ReadAll(io.LimitReader(os.Stdin, 1<<20))
		if err != nil {
			return err
		}
		return monitor.CheckHeader(header)
	}
	if !sealed() {
		return relaunch(o)
	}
	err := serve(o)
	if err != nil {
		tellReady(err)
	}
	return err
}

func serve(o *options) error {
	log := slog.New(slog.NewTextHandler(os.Stderr, nil))
	harden(log)
	r := reaper.New()
	defer r.Close()
	engines, err := newEngines(r)
	if err != nil {
		return err
	}
	defer engines.native.Close()
	cfg := monitor.ServerConfig{
		Socket: o.socket, StateDir: o.stateDir, Build: version, Log: log, Engine: engines.get, Reaper: r,
		Replace: &upgrader{o, r}, Notify: os.Getenv("NOTIFY_SOCKET"), Stored: monitor.StoredFiles(),
	}
	var s *monitor.Server
	if o.state < 0 {
		s, err = monitor.NewServer(cfg)
	} else {
		state := os.NewFile(uintptr(o.state), "state")
		s, err = monitor.ResumeServer(cfg, state)
		state.Close()
	}
	if err != nil {
		return err
	}
	lowerOOMScore(log) // after NewServer, which notes what containers get by default
	o.terms = make(chan os.Signal, 1)
	o.catch()
	var waiter sync.WaitGroup
	waiter.Go(func() {
		for range o.terms {
			if err := s.Shutdown(); err != nil {
				log.Warn("asked to end, but that would orphan containers; delete them first", "err", err)
			}
		}
	})
	tellReady(nil)
	log.Info("serving", "socket", o.socket, "pid", os.Getpid(), "build", version)
	err = s.Serve()
	signal.Stop(o.terms)
	close(o.terms)
	waiter.Wait()
	return err
}

// harden sets what a process needs that everything depends on.
func harden(log *slog.Logger) {
	debug.SetGCPercent(30)
	debug.SetMemoryLimit(48 << 20)
	signal.Ignore(unix.SIGHUP, unix.SIGPIPE)
	unix.Umask(0o022)
	_ = os.Chdir("/")
	_, _ = unix.Setsid() // EPERM: it leads a session already
	nameThreads("cri-monitor")
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		log.Warn("stays dumpable", "err", err)
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		log.Error("orphans of containers won't be reaped", "err", err)
	}
}

// lowerOOMScore makes this process the last to be killed for memory. Without CAP_SYS_RESOURCE the value can't go below
// what a process with it has set last; see proc_pid_oom_score_adj(5).
func lowerOOMScore(log *slog.Logger) {
	for _, score := range []string{"-999", "0"} {
		if os.WriteFile("/proc/self/oom_score_adj", []byte(score), 0) == nil {
			return
		}
	}
	log.Warn("oom_score_adj can't be lowered")
}
