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
		r := &run{ctx: ctx, only: match, node: node{driver: *driver, fromCRI: *fromCRI}}
		if *rebooted {
			err = r.again()
		} else {
			err = r.all()
		}
		fmt.Printf("%d passed, %d failed\n", r.passed, r.failed)
		if r.failed > 0 && err == nil {
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
	ctx            context.Context
	only           *regexp.Regexp
	passed, failed int
}

// behaviour is something that is promised. check returns nil when it holds, and else what was seen instead.
type behaviour struct {
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
	for i, list := range [][]behaviour{first, commands, workloads, storage, endings} {
		for _, b := range list {
			r.one(b)
		}
		if i == 0 && r.failed > 0 {
			return errors.New("without that there is nothing to look at\n" + r.journal("cri-monitor", "cri-server", "kubelet"))
		}
	}
	fmt.Println(r.memory())
	if r.failed > 0 {
		fmt.Println(r.journal("cri-monitor", "cri-server"))
	}
	return r.ctx.Err()
}

// again looks at the cluster after a reboot.
func (r *run) again() error {
	for _, b := range afterReboot {
		r.one(b)
	}
	if r.failed > 0 {
		fmt.Println(r.journal("cri-monitor", "cri-server"))
	}
	return r.ctx.Err()
}

func (r *run) one(b behaviour) {
	if !r.only.MatchString(b.name) || r.ctx.Err() != nil {
		return
	}
	began := time.Now()
	err := b.check(r)
	took := time.Since(began).Seconds()
	if err != nil {
		r.failed++
		fmt.Printf("FAIL %6.1f s  %s: %v\n", took, b.name, err)
		return
	}
	r.passed++
	fmt.Printf("PASS %6.1f s  %s\n", took, b.name)
}

const soon = 90 * time.Second // for what a busy machine does in a few seconds

// until tries check until it returns nil; after the limit its last error is the result.
func (r *run) until(limit time.Duration, check func(*run) error) error {
	for deadline := time.Now().Add(limit); ; {
		err := check(r)
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("not within %v: %w", limit, err)
		}
		select {
		case <-r.ctx.Done():
			return r.ctx.Err()
		case <-time.After(300 * time.Millisecond): // what has no `kubectl wait`
		}
	}
}
