// Cribench measures CRI runtimes side by side: cri-server, containerd and CRI-O with runc and crun, through the same client, with
// the same images, registry, CNI configuration and plugins, one at a time, in a mount and network namespace of its own.
//
// The runtimes take turns in every pass, in a different order each time, so that a noisy moment hits all of them. Each is started
// afresh for every turn, on a root that it keeps. CPU is what the runtime, everything it started and the pods used, measured
// by the kernel for a cgroup around all of them; work that the kernel does on its own threads afterwards (the teardown of
// namespaces) is nobody's. With -systemd, in a node that has it, cgroups are made by systemd, whose work is counted beside that of
// the runtimes. What is left on the machine after the run is printed and makes it fail.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/test/testnode"
)

type options struct {
	quick   bool
	targets []string
	phases  []string
	dir     string // the runtimes' roots
	repo    string // where bin/ is
	out     string // results.json and charts
	doc     string // the page
	command string // how to run this again, for the page
	systemd bool   // the systemd cgroup driver; where systemd is
	profile string // directory for cri-server's profiles; none if empty
	size    size
}

// size is how much is measured.
type size struct {
	Passes        int   `json:"passes"`
	Cycles        int   `json:"cycles"`        // pods one after the other, in each pass
	Workers       []int `json:"workers"`       // pods in parallel
	PerWorker     int   `json:"per_worker"`    // pods that each worker starts and removes
	PeersWorker   int   `json:"peers_worker"`  // the same for runtimes that take long
	Grow          []int `json:"grow"`          // pods at which memory is measured; the last is where growth ends
	GrowPeers     []int `json:"grow_peers"`    // the same for runtimes that take long
	Lists         []int `json:"lists"`         // containers that are listed
	ListsPeers    []int `json:"lists_peers"`   // the same for runtimes that take long
	Idle          int   `json:"idle"`          // containers while nothing happens
	IdleSecs      int   `json:"idle_s"`        // for so many seconds
	ProbeSecs     int   `json:"probe_s"`       // seconds of exec probes
	LogMB         int   `json:"log_mb"`        // MB that a container writes
	Restarts      []int `json:"restart_pods"`  // pods that run while the runtime is restarted
	RestartsPeers []int `json:"restart_peers"` // the same for runtimes that take long
}

var full = size{Passes: 3, Cycles: 15, Workers: []int{1, 2, 4, 8, 16}, PerWorker: 16, PeersWorker: 4, Grow: []int{10, 50, 200, 500}, GrowPeers: []int{10, 50, 200},
	Lists: []int{50, 500, 1000}, ListsPeers: []int{50, 500}, Idle: 1000, IdleSecs: 60, ProbeSecs: 10, LogMB: 512,
	Restarts: []int{0, 100, 500}, RestartsPeers: []int{0, 100}}

var quick = size{Passes: 2, Cycles: 4, Workers: []int{1, 8}, PerWorker: 2, PeersWorker: 2, Grow: []int{10, 50}, GrowPeers: []int{10},
	Lists: []int{50, 200}, ListsPeers: []int{50}, Idle: 100, IdleSecs: 10, ProbeSecs: 2, LogMB: 128,
	Restarts: []int{0, 10}, RestartsPeers: []int{0, 10}}

var allPhases = []string{"latency", "limit", "parallel", "grow", "lists", "idle", "probes", "logs", "restart", "syscalls", "spans", "systemd", "profile", "floor"}

func main() {
	var o options
	var targets, phases, render, other string
	flag.BoolVar(&o.quick, "quick", false, "small numbers: a few minutes for all")
	flag.StringVar(&targets, "targets", "", "comma-separated names, with * and ?; all if empty: "+strings.Join(targetNames(), ","))
	flag.StringVar(&phases, "phases", "", "comma-separated; all if empty: "+strings.Join(allPhases, ","))
	flag.StringVar(&o.dir, "dir", "", "directory for the runtimes' roots; a temporary one if empty")
	flag.StringVar(&o.repo, "repo", ".", "the repository, with what `make bench` builds in bin/")
	flag.StringVar(&o.out, "out", "docs/bench", "directory for results.json and the charts")
	flag.StringVar(&o.doc, "doc", "docs/benchmarks.md", "the page to write; none if empty")
	flag.StringVar(&o.command, "command", "make bench", "how this run was started, for the page")
	flag.StringVar(&o.profile, "profile", "", "directory for cri-server's heap profiles at each measurement of memory; none if empty")
	flag.BoolVar(&o.systemd, "systemd", false, "the systemd cgroup driver for all: in a node that has systemd, with CRI_SERVER_TEST_SYSTEMD=1 set; see hack/bench-node")
	cycles := flag.Int("cycles", 0, "pods one after the other in each pass; 0: as the size says")
	passes := flag.Int("passes", 0, "passes; 0: as the size says")
	flag.StringVar(&render, "render", "", "measure nothing; write page and charts from this results.json")
	flag.StringVar(&other, "against", "", "compare with another tree: its bin/ and this one's, pod by pod in turns; prints, and writes nothing else. Phases: latency, sandboxes, execs, parallel, spans, grow, lists")
	flag.Parse()
	o.targets, o.phases = list(targets), list(phases)
	if len(o.phases) == 0 {
		o.phases = allPhases
	}
	if o.size = full; o.quick {
		o.size = quick
	}
	o.size.Cycles, o.size.Passes = cmp.Or(*cycles, o.size.Cycles), cmp.Or(*passes, o.size.Passes)
	if err := run(o, render, other); err != nil {
		fmt.Fprintln(os.Stderr, "cribench:", err)
		os.Exit(1)
	}
}

func list(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' })
}

func run(o options, render, other string) (err error) {
	for _, p := range []*string{&o.repo, &o.out, &o.doc, &o.profile, &other} {
		if *p == "" {
			continue
		}
		if *p, err = filepath.Abs(*p); err != nil {
			return err
		}
	}
	if render != "" {
		r, err := readResults(render)
		if err != nil {
			return err
		}
		return publish(o, r)
	}
	if err := testnode.Isolate(func(n int) { fmt.Fprintf(os.Stderr, "nothing left behind (%d things compared)\n", n) }); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if o.dir == "" {
		if o.dir, err = os.MkdirTemp("", "cribench-"); err != nil {
			return err
		}
		// rm, since the tree may be deep and owned by other user ids.
		defer func() { err = errors.Join(err, exec.Command("rm", "-rf", o.dir).Run()) }()
	}
	if other != "" {
		return against(ctx, o, other)
	}
	r, err := measure(ctx, o)
	if r == nil {
		return err
	}
	// What was measured before a failure is kept.
	return errors.Join(err, publish(o, r))
}

// publish writes what there is to read: table, JSON, charts, page.
func publish(o options, r *results) error {
	if err := table(os.Stdout, r); err != nil {
		return err
	}
	if err := r.write(o.out); err != nil {
		return err
	}
	if err := charts(o.out, r); err != nil {
		return err
	}
	if o.doc == "" {
		return nil
	}
	return page(o.doc, o.out, r)
}
