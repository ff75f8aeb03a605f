// Command kubelet-test runs a real kubelet, standalone with static pods, above cri-server on a test node of its own, and
// says for each behaviour that Kubernetes promises of a pod whether it holds and how long after kubelet's start:
//
//	kubelet-test -kubelet BINARY [-driver systemd|cgroupfs] [-run REGEXP] [-keep DIR]
//	kubelet-test -kubelet BINARY [-driver …] -reboot before|after -disk DIR
//	kubelet-test -kubelet BINARY [-driver …] -times [-server COMMAND]
//
// The node (package testnode) has its own mounts and network, and with -driver cgroupfs a cgroup of its own as kubelet's
// cgroupRoot, so that it runs on any machine; with -driver systemd kubelet makes kubepods.slice, so that pid 1 must be
// the systemd of a machine that is there for tests, such as the one of hack/node. The settings of the whole machine that
// a kubelet writes are private files. The pods are in pods/; the binary is built from the module in kubelet/.
//
// For a reboot it runs twice: -reboot before brings pods up and waits to be killed together with the whole node, -reboot
// after looks what the next start makes of what is on the disk.
//
// Not covered, since kubelet refuses it for static pods or without an API server: in-place resize, recursive read-only
// mounts, ephemeral containers, config maps and secrets, eviction of pods. Those are in test/cluster.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"sync"
	"syscall"
	"time"

	"github.com/seed-9a14075a/cri-server/test/behaviour"
	"github.com/seed-9a14075a/cri-server/test/testnode"
)

func main() {
	binary := flag.String("kubelet", ".cache/kubelet", "the kubelet `binary`")
	driver := flag.String("driver", "cgroupfs", "cgroup `driver` of cri-server; kubelet follows it")
	only := flag.String("run", "", "check only behaviours that match this `regexp`")
	keep := flag.String("keep", "", "keep the logs of kubelet and cri-server in this `directory`")
	disk := flag.String("disk", "", "the node's files are in this `directory`, which is kept")
	reboot := flag.String("reboot", "", "before or after: the part of a reboot to be done, with -disk")
	times := flag.Bool("times", false, "check nothing, but measure how long it takes until pods run")
	server := flag.String("server", "", "shell `command` to run instead of cri-server, with -times; it sees NODE_DIR, NODE_SOCKET and NODE_CERTS")
	flag.Parse()
	if err := testnode.Isolate(nil); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	failed, err := test(ctx, settings{*binary, *driver, *only, *keep, *disk, *reboot, *server, *times})
	if err != nil {
		fmt.Fprintln(os.Stderr, "kubelet-test:", err)
	}
	if err != nil || failed > 0 {
		os.Exit(1)
	}
}

// settings are the command line.
type settings struct {
	binary, driver, only, keep, disk, reboot, server string
	times                                            bool
}

// run is one kubelet on one node, and what was found out about it.
type run struct {
	*ground
	*kubelet
	ctx   context.Context
	score behaviour.Score
	away  [][2]time.Time // when kubelet or cri-server was
}

// promise is something that is promised. check returns nil when it holds, and else what was seen instead.
type promise struct {
	name  string
	check func(*run) error
}

func test(ctx context.Context, o settings) (failed int, err error) {
	match, err := regexp.Compile(o.only)
	if err != nil {
		return 0, err
	}
	binary, err := filepath.Abs(o.binary)
	if err != nil {
		return 0, err
	}
	if _, err := os.Stat(binary); err != nil {
		return 0, fmt.Errorf("no kubelet (make test-kubelet builds it): %w", err)
	}
	g, err := newGround(ctx, o)
	if err != nil {
		return 0, err
	}
	r := &run{ground: g, kubelet: newKubelet(binary, g), ctx: ctx, score: behaviour.Score{Only: match}}
	defer func() {
		// An interrupted run has to end its pods too.
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Minute)
		defer cancel()
		err = errors.Join(err, r.kubelet.end(), r.ground.end(clean, o.keep))
	}()
	if o.times {
		return 0, r.times()
	}
	parts := map[string]func() error{"": r.all, "before": r.beforeReboot, "after": r.afterReboot}
	if parts[o.reboot] == nil || (o.reboot == "") != (o.disk == "") {
		return 0, errors.New("-reboot is before or after, and goes with -disk")
	}
	if err := parts[o.reboot](); err != nil {
		return r.score.Failed(), err
	}
	fmt.Printf("%s (kubelet %s, %s driver)\n", r.score.String(), r.version(), o.driver)
	return r.score.Failed(), ctx.Err()
}

// all checks the behaviours in the order in which one kubelet's life shows them.
func (r *run) all() error {
	if err := r.warm(r.ctx); err != nil {
		return err
	}
	if err := r.place("web"); err != nil {
		return err
	}
	if err := r.kubelet.start(r.ctx); err != nil {
		return err
	}
	r.each([]promise{{"first pod Ready after kubelet's start", firstReady}})
	if err := r.place("gates", "crash", "unhealthy", "chatty", "messages", "order", "volumes", "hostnet", "limits", "graceful",
		"stubborn", "secure", "userns", "shared"); err != nil {
		return err
	}
	r.together(inPods)
	r.each(restarts)
	r.each(afterwards)
	return r.ctx.Err()
}

// each checks behaviours one after another.
func (r *run) each(list []promise) {
	for _, b := range list {
		r.one(b)
	}
}

// together checks behaviours of different pods at the same time.
func (r *run) together(list []promise) {
	var wg sync.WaitGroup
	for _, b := range list {
		wg.Go(func() { r.one(b) })
	}
	wg.Wait()
}

func (r *run) one(b promise) { r.score.Check(r.ctx, b.name, func() error { return b.check(r) }) }

// until waits for what kubelet's API only shows; see behaviour.Until.
func (r *run) until(limit time.Duration, check func() error) error {
	return behaviour.Until(r.ctx, limit, 200*time.Millisecond, check)
}
