// Command cluster-test runs a cluster of one node on cri-server: etcd, kube-apiserver, kube-controller-manager,
// kube-scheduler, kube-proxy and kubelet are units of the node's systemd, as cri-server and cri-monitor are by their units in
// contrib/. It says for each thing that one does to a cluster with kubectl whether it works and how long it took:
//
//	cluster-test [-driver systemd|cgroupfs] [-run REGEXP] [-stats-from-cri]
//	cluster-test -rebooted
//
// It changes the node that it runs on without cleaning up, and so runs only in one of hack/node, which is thrown away;
// hack/cluster-test does that. The node's /share holds the programs of Kubernetes. With -rebooted it looks at the same
// cluster after the node went down with all its pods and came up again.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"syscall"
	"time"

	"github.com/seed-9a14075a/cri-server/test/behaviour"
)

func main() {
	driver := flag.String("driver", "systemd", "cgroup `driver` of cri-server; kubelet follows it")
	only := flag.String("run", "", "check only behaviours that match this `regexp`")
	fromCRI := flag.Bool("stats-from-cri", false, "kubelet has the gate PodAndContainerStatsFromCRI")
	rebooted := flag.Bool("rebooted", false, "the cluster was set up before a reboot of the node")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	match, err := regexp.Compile(*only)
	if err == nil {
		r := &run{ctx: ctx, score: behaviour.Score{Only: match}, node: node{driver: *driver, fromCRI: *fromCRI}}
		if *rebooted {
			err = r.again()
		} else {
			err = r.all()
		}
		fmt.Println(r.score.String())
		if r.score.Failed() > 0 && err == nil {
			os.Exit(1)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "cluster-test:", err)
		os.Exit(1)
	}
}

// run is what was found out about one cluster.
type run struct {
	node
	ctx   context.Context
	score behaviour.Score
	// killed is how often each of killable was.
	killed int
}

// promise is something that is promised. check returns nil when it holds, and else what was seen instead.
type promise struct {
	name  string
	check func(*run) error
}

// all brings the cluster up and checks the behaviours.
func (r *run) all() error {
	if _, err := os.Stat("/.node-root"); err != nil {
		return errors.New("this is no test node (hack/node)")
	}
	began := time.Now()
	if err := r.setUp(); err != nil {
		return err
	}
	if err := r.serveImages(); err != nil {
		return err
	}
	if err := r.startUnits(); err != nil {
		return err
	}
	if err := r.until(2*time.Minute, nodeReady); err != nil {
		return fmt.Errorf("%w\n%s", err, r.journal())
	}
	fmt.Printf("the node is Ready after %.1f s; %s\n", time.Since(began).Seconds(), r.memory())
	for i, list := range [][]promise{first, commands, workloads, storage, endings} {
		for _, b := range list {
			r.one(b)
		}
		if i == 0 && r.score.Failed() > 0 {
			return errors.New("without that there is nothing to look at\n" + r.journal("cri-monitor", "cri-server", "kubelet"))
		}
	}
	fmt.Println(r.memory())
	if r.score.Failed() > 0 {
		fmt.Println(r.journal("cri-monitor", "cri-server"))
	}
	return r.ctx.Err()
}

// again looks at the cluster after a reboot.
func (r *run) again() error {
	for _, b := range afterReboot {
		r.one(b)
	}
	if r.score.Failed() > 0 {
		fmt.Println(r.journal("cri-monitor", "cri-server"))
	}
	return r.ctx.Err()
}

func (r *run) one(b promise) { r.score.Check(r.ctx, b.name, func() error { return b.check(r) }) }

const soon = 90 * time.Second // for what a busy machine does in a few seconds

// until waits for what has no `kubectl wait`; see behaviour.Until.
func (r *run) until(limit time.Duration, check func(*run) error) error {
	return behaviour.Until(r.ctx, limit, 300*time.Millisecond, func() error { return check(r) })
}
