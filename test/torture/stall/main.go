// Command stall measures what a container notices when the programs that hold it are killed: a container writes lines
// at a steady rate while cri-server and cri-monitor get SIGKILL again and again, and its log is rotated. It reports the
// longest write(2) and compares the log with what was written, byte by byte.
//
//	stall [-for 5m] [-rate 20] [-server 1s] [-monitor 5s] [-unit=false]
//	stall -upgrades 1000 [-rate 50] [-unit=false]
//
// With -unit cri-monitor is started, and started again, as systemd does it for a unit with a descriptor store, so that
// both may die at once. Without, cri-server starts it, and the kills of cri-monitor wait until cri-server is up.
//
// With -upgrades nothing is killed: cri-monitor is upgraded in place so many times, one upgrade up to 50 ms after the other, while
// exec sessions and an attachment send lines and get them back, execs run, and pods come and go besides the writer. Any error of any
// of them ends the run.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/test/images"
	"github.com/seed-9a14075a/cri-server/test/testnode"
)

type options struct {
	length, server, monitor time.Duration
	rate                    float64 // MB/s
	unit                    bool
	upgrades                int
	write, out              string
}

func main() {
	var o options
	flag.DurationVar(&o.length, "for", 20*time.Second, "how long the container writes")
	flag.DurationVar(&o.server, "server", time.Second, "time between two kills of cri-server; 0: none")
	flag.DurationVar(&o.monitor, "monitor", 5*time.Second, "time between two kills of cri-monitor; 0: none")
	flag.Float64Var(&o.rate, "rate", 20, "MB/s that the container writes")
	flag.BoolVar(&o.unit, "unit", true, "run cri-monitor as a unit with a descriptor store")
	flag.IntVar(&o.upgrades, "upgrades", 0, "upgrade cri-monitor so often, instead of killing anything; the container writes until then")
	flag.StringVar(&o.write, "write", "", "be the program in the container, and tell in this `file` what was written")
	flag.Parse()
	if o.upgrades > 0 {
		o.length = 24 * time.Hour
	}
	if o.write != "" {
		if err := write(&o); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if err := testnode.Isolate(nil); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if err := run(&o); err != nil {
		fmt.Fprintln(os.Stderr, "stall:", err)
		os.Exit(1)
	}
}

func run(o *options) (err error) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := testnode.ReapOrphans(); err != nil {
		return err
	}
	repo, err := filepath.Abs(".")
	if err != nil {
		return err
	}
	var u *testnode.Unit
	if o.unit {
		if u, err = testnode.StartUnit(filepath.Join(repo, "bin", "cri-monitor"), "/run/cri-server/monitor"); err != nil {
			return err
		}
	}
	n, err := testnode.Start(ctx, testnode.Options{Repo: repo})
	if err != nil {
		if u != nil {
			u.Stop()
		}
		return err
	}
	defer func() {
		if err != nil {
			b, _ := os.ReadFile("/run/cri-server/monitor/monitor.log")
			fmt.Fprintf(os.Stderr, "stall: %v\n%s\n%s\n", err, n.LogTail(), b[max(0, len(b)-4000):])
		}
		_, rerr := n.RemovePods(context.WithoutCancel(ctx))
		err = errors.Join(err, rerr, n.StopServer())
		if u != nil {
			u.Stop()
		}
		err = errors.Join(err, n.Stop())
	}()
	w, err := startWriter(ctx, n, o)
	if err != nil {
		return err
	}
	if o.upgrades > 0 {
		return upgrade(ctx, n, o, w)
	}
	k := &killer{n: n, o: o, u: u}
	kerr := k.run(ctx, w)
	if err := w.finish(ctx, n); err != nil {
		return errors.Join(kerr, err)
	}
	fmt.Printf("%d kills of cri-server, %d of cri-monitor\n", k.servers, k.monitors)
	k.absent(w.id)
	return errors.Join(kerr, w.report())
}

func upgrade(ctx context.Context, n *testnode.Node, o *options, w *writer) error {
	began := time.Now()
	uerr := (&upgrader{n: n, o: o}).run(ctx, w)
	took := time.Since(began)
	if err := w.finish(ctx, n); err != nil {
		return errors.Join(uerr, err)
	}
	fmt.Printf("%.1f MB/s\n", float64(w.lines*lineSize)/1e6/took.Seconds())
	return errors.Join(uerr, w.report())
}

// killer kills in turn until the writer has ended.
type killer struct {
	n                 *testnode.Node
	o                 *options
	u                 *testnode.Unit
	servers, monitors int
	killed            []time.Time // cri-monitor
}

func (k *killer) run(ctx context.Context, w *writer) error {
	server, monitor := ticker(k.o.server), ticker(k.o.monitor)
	rotate := time.NewTicker(2 * time.Second)
	defer rotate.Stop()
	for {
		select {
		case <-w.ended():
			return nil
		case <-ctx.Done():
			return ctx.Err()
		case <-server:
			if err := k.n.KillServer(); err != nil {
				return err
			}
			k.servers++
			if k.u != nil && k.servers%5 == 0 && k.o.monitor > 0 { // both at once
				k.u.Kill()
				k.killed = append(k.killed, time.Now())
				k.monitors++
			}
			if err := k.n.StartServer(ctx); err != nil {
				return err
			}
		case <-monitor:
			k.killed = append(k.killed, time.Now())
			if err := k.killMonitor(); err != nil {
				return err
			}
			k.monitors++
		case <-rotate.C:
			if err := w.rotate(ctx, k.n); err != nil {
				return err
			}
		}
	}
}

// absent prints for how long nobody read the container's output: from each kill to the line in the next cri-monitor's
// log that it was taken back.
func (k *killer) absent(id string) {
	b, _ := os.ReadFile("/run/cri-server/monitor/monitor.log")
	var back []time.Time
	for line := range strings.Lines(string(b)) {
		stamp, rest, _ := strings.Cut(strings.TrimPrefix(line, "time="), " ")
		at, err := time.Parse(time.RFC3339Nano, stamp)
		if err == nil && strings.Contains(rest, "container taken back") && strings.Contains(rest, id) {
			back = append(back, at)
		}
	}
	var gaps []time.Duration
	for _, at := range k.killed {
		for _, b := range back {
			if b.After(at) {
				gaps = append(gaps, b.Sub(at))
				break
			}
		}
	}
	slices.Sort(gaps)
	if n := len(gaps); n > 0 {
		fmt.Printf("without a reader after a kill: shortest %v, median %v, longest %v\n", gaps[0], gaps[n/2], gaps[n-1])
	}
}

func ticker(d time.Duration) <-chan time.Time {
	if d <= 0 {
		return nil
	}
	return time.NewTicker(d).C
}

func (k *killer) killMonitor() error {
	if k.u != nil {
		k.u.Kill()
		return nil
	}
	for _, p := range testnode.Descendants(os.Getpid()) {
		if strings.Contains(p.Cmdline, "cri-monitor --socket") && !p.Zombie {
			return unix.Kill(p.Pid, unix.SIGKILL)
		}
	}
	return errors.New("no cri-monitor")
}

// startWriter runs this program in a container.
func startWriter(ctx context.Context, n *testnode.Node, o *options) (*writer, error) {
	image := &cri.ImageSpec{Image: "registry.k8s.io/" + images.Busybox}
	if _, err := n.Image.PullImage(ctx, &cri.PullImageRequest{Image: image}); err != nil {
		return nil, fmt.Errorf("pull: %w", err)
	}
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	w := &writer{dir: filepath.Join(n.Dir, "tmp", "stall")}
	for _, d := range []string{"logs", "result"} {
		if err := os.MkdirAll(filepath.Join(w.dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	pod := &cri.PodSandboxConfig{Metadata: &cri.PodSandboxMetadata{Name: "stall", Namespace: "test", Uid: "stall"},
		LogDirectory: filepath.Join(w.dir, "logs"), Linux: &cri.LinuxPodSandboxConfig{}}
	p, err := n.Runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: pod})
	if err != nil {
		return nil, fmt.Errorf("run pod: %w", err)
	}
	c, err := n.Runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: p.PodSandboxId, SandboxConfig: pod, Config: &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "writer"}, Image: image, LogPath: "writer.log", Linux: &cri.LinuxContainerConfig{},
		Command: []string{"/stall", "-write", "/result/written", "-for", o.length.String(), "-rate", fmt.Sprint(o.rate)},
		Mounts: []*cri.Mount{{HostPath: self, ContainerPath: "/stall", Readonly: true},
			{HostPath: filepath.Join(w.dir, "result"), ContainerPath: "/result"}},
	}})
	if err != nil {
		return nil, fmt.Errorf("create: %w", err)
	}
	w.id = c.ContainerId
	_, err = n.Runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: w.id})
	return w, err
}
