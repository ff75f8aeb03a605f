// Command torture runs pods on a test node while their runtime is killed again and again, and compares what cri-server
// says with what is there:
//
//	torture [-seed N] [-for 10m] [-kills N] [-workers 4] [-unit] [-faults] [-errors] [-dense] [-handlers runc,crun]
//
// Workers make, use and remove pods at random and repeat each call until it is acknowledged; what was acknowledged is the
// model. Each container writes two numbered streams (package stream) and ends with a status that is known in advance. A
// killer ends cri-server and cri-monitor with SIGKILL, at random moments and at named fault points, and upgrades
// cri-monitor in place. After each start of cri-server its lists are compared with the model, while the workers go on;
// after every few kills the workers rest, and everything is compared: CRI, processes, cgroups, network namespaces, mounts,
// interfaces, addresses, netfilter rules, records, files. Every container's log is compared byte by byte when it has ended.
//
// With -unit cri-monitor is run as systemd runs a unit with a descriptor store, and both may die at once; without,
// cri-server starts it. The first thing that is wrong ends the run; then its seed, its step and the logs are kept.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/seed-9a14075a/cri-server/test/images"
	"github.com/seed-9a14075a/cri-server/test/testnode"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

type options struct {
	seed         uint64
	length       time.Duration
	kills        int
	workers      int
	unit, errors bool
	faults       bool
	dense        bool
	repo, keep   string
	result       string
	points       string
	handlers     string
	writer       string
}

func main() {
	var o options
	flag.Uint64Var(&o.seed, "seed", 0, "repeats the choices of a run; 0: a new one")
	flag.DurationVar(&o.length, "for", time.Minute, "how long")
	flag.IntVar(&o.kills, "kills", 0, "end after so many kills of cri-server; 0: when the time is over")
	flag.IntVar(&o.workers, "workers", 4, "how many clients work at a time")
	flag.BoolVar(&o.unit, "unit", false, "run cri-monitor as a unit with a descriptor store")
	flag.BoolVar(&o.faults, "faults", false, "use the programs that have fault points (make faults), and have them die there too")
	flag.BoolVar(&o.errors, "errors", false, "let fault points return errors too")
	flag.BoolVar(&o.dense, "dense", false, "kill more often: cri-server while it comes up, and cri-monitor")
	flag.StringVar(&o.repo, "repo", ".", "where bin and .cache are")
	flag.StringVar(&o.keep, "keep", os.TempDir(), "where a failed run's files are kept")
	flag.StringVar(&o.writer, "writer", "bin/writer", "the `program` for the containers (test/torture/writer)")
	flag.StringVar(&o.handlers, "handlers", "", "`names` of OCI runtimes (runc,crun) that pods use too; crun has the machine's cgroup2 hidden if it is a hybrid one")
	flag.StringVar(&o.points, "points", "", "append a line for each fault point at which a program died to this `file` (test/torture/points)")
	flag.StringVar(&o.result, "result", "", "append the figures, as a line of JSON, to this `file`")
	flag.Parse()
	if o.workers < 1 || o.workers > len(imagesOfWorkers) {
		fmt.Fprintf(os.Stderr, "torture: between 1 and %d workers\n", len(imagesOfWorkers))
		os.Exit(2)
	}
	if o.seed == 0 {
		o.seed = uint64(time.Now().UnixNano())
	}
	if err := testnode.Isolate(nil); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if strings.Contains(o.handlers, "crun") {
		if err := testnode.HideUnified(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	if err := run(&o); err != nil {
		fmt.Fprintf(os.Stderr, "torture: seed %d: %v\n", o.seed, err)
		os.Exit(1)
	}
}

// torture is one run.
type torture struct {
	o       *options
	node    *testnode.Node
	unit    *testnode.Unit
	writer  string // the program for the containers
	faults  string // directory of the plans; "" without fault points
	monitor string // the program
	model   *model
	killer  *rand.Rand
	// handlers are those of pods, "" among them.
	handlers []string

	steps sync.RWMutex // workers hold it for a step; who holds it alone has them rest
	tally tally
	calls calls

	logs    sync.Mutex
	log     *os.File
	began   time.Time
	stop    context.CancelFunc
	failure error

	base    resources
	workers []*worker
}

// cgroup is the parent of the node's pods.
func (t *torture) cgroup() string { return fmt.Sprintf("/cri-node-%d", os.Getpid()) }

func run(o *options) (err error) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := testnode.ReapOrphans(); err != nil {
		return err
	}
	repo, err := filepath.Abs(o.repo)
	if err != nil {
		return err
	}
	t := &torture{o: o, model: newModel(), killer: rand.New(rand.NewPCG(o.seed, 0)), began: time.Now()}
	if t.writer, err = filepath.Abs(o.writer); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "cri-node-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	node := testnode.Options{Repo: repo, Cgroup: t.cgroup(), Dir: dir, Faults: o.faults, Config: t.runtimes()}
	if t.monitor = filepath.Join(repo, "bin", "cri-monitor"); o.faults {
		t.monitor = filepath.Join(repo, ".cache", "faults", "cri-monitor")
		t.faults = filepath.Join(dir, "faults")
		if err := os.MkdirAll(t.faults, 0o755); err != nil {
			return err
		}
	}
	if err := t.bringUp(ctx, node); err != nil {
		return err
	}
	err = t.torture(ctx)
	if err != nil {
		kept := t.keep()
		err = fmt.Errorf("step %d, after %d kills of cri-server and %d of cri-monitor: %w\nlogs: %s", t.tally.steps.Load(),
			t.tally.servers.Load(), t.tally.monitors.Load(), err, kept)
	}
	t.report(err)
	return errors.Join(err, t.takeDown(err == nil))
}

// runtimes looks for the OCI runtimes and returns the configuration for them.
func (t *torture) runtimes() (config string) {
	t.handlers = []string{"", "", ""}
	for name := range strings.FieldsFuncSeq(t.o.handlers, func(r rune) bool { return r == ',' }) {
		if path, err := exec.LookPath(name); err == nil {
			config += fmt.Sprintf("[runtimes.%s]\nengine = \"oci\"\npath = %q\n", name, path)
			t.handlers = append(t.handlers, name)
		}
	}
	return config
}

func (t *torture) bringUp(ctx context.Context, node testnode.Options) (err error) {
	if t.o.unit {
		if t.unit, err = testnode.StartUnit(t.monitor, monitorDir, t.environ()...); err != nil {
			return err
		}
	}
	if t.node, err = testnode.Start(ctx, node); err != nil {
		if t.unit != nil {
			t.unit.Stop()
		}
		return err
	}
	if t.log, err = os.Create(filepath.Join(t.node.Dir, "torture.log")); err != nil {
		return errors.Join(err, t.takeDown(false))
	}
	_, err = t.node.Image.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: registry + images.Busybox}})
	if err == nil {
		err = t.node.WarmUp(ctx)
	}
	if err != nil {
		return errors.Join(err, t.takeDown(false))
	}
	return nil
}

// torture runs workers and killer until the end.
func (t *torture) torture(ctx context.Context) error {
	if err := t.measureBase(ctx); err != nil {
		return err
	}
	working, stop := context.WithCancel(ctx)
	defer stop()
	t.stop = stop
	var workers sync.WaitGroup
	for n := range t.o.workers {
		w := &worker{t: t, n: n, random: rand.New(rand.NewPCG(t.o.seed, uint64(n)+1))}
		t.workers = append(t.workers, w)
		workers.Go(func() { w.run(working) })
	}
	err := t.kill(working)
	if err == nil {
		err = t.checkAll(working)
	}
	t.steps.Lock() // the workers end between two steps, and their model is whole
	stop()
	t.steps.Unlock()
	workers.Wait()
	t.logs.Lock()
	failure := t.failure
	t.logs.Unlock()
	if failure != nil {
		return failure
	}
	if err != nil {
		return err
	}
	return t.checkEmpty(ctx)
}

func (t *torture) takeDown(whole bool) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_, err := t.node.RemovePods(ctx)
	err = errors.Join(err, t.node.StopServer())
	if t.unit != nil {
		t.unit.Stop()
	}
	err = errors.Join(err, t.node.Stop())
	if !whole {
		return nil // it is known already
	}
	return err
}

// report prints the figures.
func (t *torture) report(err error) {
	f := t.tally.figures()
	f["seed"], f["seconds"], f["unit"], f["fault_points"], f["errors"] = t.o.seed, int(time.Since(t.began).Seconds()), t.o.unit, t.faults != "", t.o.errors
	f["load"] = load()
	f["failed"] = 0
	if err != nil {
		f["failed"] = 1
	}
	b, _ := json.Marshal(f)
	fmt.Printf("%s\n%s", b, t.calls.table())
	if t.o.result == "" {
		return
	}
	appendLine(t.o.result, string(b))
}

func appendLine(name, line string) {
	out, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err == nil {
		_, err = out.WriteString(line + "\n")
		err = errors.Join(err, out.Close())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "torture:", err)
	}
}
