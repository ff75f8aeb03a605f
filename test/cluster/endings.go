package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/seed-9a14075a/cri-server/test/behaviour"
)

// endings are restarts below a cluster that goes on, and drains.
var endings = []promise{
	{"cri-server killed, cri-monitor killed, kubelet killed: no container restarts", kills},
	{"kubectl drain with a disruption budget, uncordon", drain},
	{"a namespace with pods deleted: nothing of it is left in the runtime", namespaceGone},
	{"no event tells of a failure that was not meant", events},
	{"cri-server, cri-monitor and kubelet were started again as often as they were killed", startedAgain},
	{"the cluster as a reboot will find it", prepare},
}

// afterReboot is what a cluster is after its only node has come back.
var afterReboot = []promise{
	{"after a reboot: the node is Ready", func(r *run) error { return r.until(2*time.Minute, nodeReady) }},
	{"after a reboot: the same pods run again, with new sandboxes, and their restarts are counted", cameBack},
	{"after a reboot: logs, also of before", logsAfter},
	{"after a reboot: the Service answers", serviceAfter},
	{"memory pressure: the pod that takes more than it asked for is evicted, with what it took", pressure},
	{"after a reboot: everything deleted, nothing left in runtime, cgroups, network", allGone},
}

// answers gets a page and compares it.
func answers(at, want string) error {
	page, err := behaviour.Page(at)
	return errors.Join(err, matches(page, want))
}

// counts are the restarts of all running pods' containers.
func (r *run) counts() (string, error) {
	return r.k("get", "pods", "--field-selector=status.phase=Running", "--sort-by=.metadata.name",
		"-o", `jsonpath={range .items[*]}{.metadata.name}{":"}{.status.containerStatuses[*].restartCount}{" "}{.status.containerStatuses[*].containerID}{"\n"}{end}`)
}

var killable = []string{"cri-server", "cri-monitor", "kubelet"}

func kills(r *run) error {
	before, err := r.counts()
	if err != nil {
		return err
	}
	for _, unit := range killable {
		if err := errors.Join(systemctl("kill", "--kill-whom=main", "-s", "KILL", unit), r.until(soon, func(r *run) error {
			return errors.Join(systemctl("is-active", unit), r.inside("box", "echo up", "up"))
		})); err != nil {
			return fmt.Errorf("%s: %w\n%s", unit, err, r.journal(unit))
		}
	}
	r.killed++
	if err := r.ready("web", "box", "talker"); err != nil {
		return err
	}
	after, err := r.counts()
	if err == nil && after != before {
		err = fmt.Errorf("was:\n%sis:\n%s", before, after)
	}
	return err
}

// startedAgain: nothing but this test, such as a watchdog, has ended a unit.
func startedAgain(r *run) error {
	var errs []error
	for _, unit := range killable {
		out, err := exec.Command("systemctl", "show", "-p", "NRestarts", "--value", unit).Output()
		if err == nil && strings.TrimSpace(string(out)) != fmt.Sprint(r.killed) {
			err = fmt.Errorf("%s, after %d kills\n%s", bytes.TrimSpace(out), r.killed, r.journal(unit))
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", unit, err))
		}
	}
	return errors.Join(errs...)
}

func drain(r *run) error {
	err := r.ks("create poddisruptionbudget shop --selector=app=shop --min-available=1",
		"drain "+nodeName+" --pod-selector=app=shop --ignore-daemonsets --delete-emptydir-data --timeout=5s")
	// The budget holds the last one back: there is no other node.
	if err == nil || !strings.Contains(err.Error(), "disruption budget") {
		return fmt.Errorf("drained against its budget: %w", err)
	}
	return errors.Join(r.ks("uncordon "+nodeName, "delete poddisruptionbudget shop", "rollout status deployment/shop --timeout=90s"))
}

func namespaceGone(r *run) error {
	if err := r.ks("create namespace passing", "create deployment passing -n passing --image="+busybox+" --replicas=3 -- sleep 100000",
		"rollout status deployment/passing -n passing --timeout=90s", "delete namespace passing --timeout=90s"); err != nil {
		return err
	}
	return r.until(soon, func(*run) error {
		pods, err := crictl("pods", "-q", "--namespace", "passing")
		if err == nil && len(pods) > 0 {
			err = fmt.Errorf("sandboxes are left: %v", pods)
		}
		return err
	})
}

// meant are the warnings that behaviours provoke: reason, and what the object's name starts with.
var meant = map[string][]string{
	"FailedCreatePodSandBox": {"by-nobody"}, "Failed": {"absent", "never"}, "BackOff": {"absent", "never", "talker", "fails"}, "ErrImageNeverPull": {"never"},
	"Evicted": {"fills-", "hog"}, "ExceededGracePeriod": {"fills-"},
	"FailedScheduling": {""}, "NodeNotReady": {""}, "InvalidDiskCapacity": {nodeName}, "CgroupV1": {nodeName}, "BackoffLimitExceeded": {"fails"},
	"PodFailurePolicy": {"fails"}, "FailedToRetrieveImagePullSecret": {""}, "Rebooted": {nodeName}, "FailedMount": {""},
	"FailedToCreateEndpoint": {"shop"},
}

func events(r *run) error {
	out, err := r.k("get", "events", "-A", "--field-selector=type=Warning", "-o", `jsonpath={range .items[*]}{.reason}{"\t"}{.involvedObject.name}{"\t"}{.message}{"\n"}{end}`)
	if err != nil {
		return err
	}
	var odd []string
	for _, l := range strings.Split(strings.TrimSpace(out), "\n") {
		f := strings.SplitN(l, "\t", 3)
		if strings.Contains(l, "dial unix /run/cri-server/cri-server.sock: connect: connection refused") { // it was killed
			continue
		}
		if len(f) == 3 && f[0] == "Unhealthy" && strings.HasPrefix(f[2], "Readiness probe failed") { // it starts
			continue
		}
		if len(f) == 3 && !slices.ContainsFunc(meant[f[0]], func(name string) bool { return strings.HasPrefix(f[1], name) }) {
			odd = append(odd, l)
		}
	}
	if len(odd) > 0 {
		return fmt.Errorf("\n\t%s", strings.Join(odd, "\n\t"))
	}
	return nil
}

const survivors = etc + "/survivors"

// prepare ends the pods that would not come back, and writes down those that will.
func prepare(r *run) error {
	if err := errors.Join(r.ks("delete pod --field-selector=status.phase!=Running --now", "delete job --all"),
		os.WriteFile(etc+"/manifests/fixed.yaml", []byte(object("fixed")), 0o644), r.becomes("True", "get pod fixed-"+nodeName+
			` -o jsonpath={.status.conditions[?(@.type=="Ready")].status}`)); err != nil {
		return err
	}
	out, err := r.uids()
	return errors.Join(err, os.WriteFile(survivors, []byte(out), 0o644))
}

func (r *run) uids() (string, error) {
	return r.k("get", "pods", "--sort-by=.metadata.name", "-o", `jsonpath={range .items[*]}{.metadata.name}{" "}{.metadata.uid}{"\n"}{end}`)
}

func cameBack(r *run) error {
	before, err := os.ReadFile(survivors)
	if err != nil {
		return err
	}
	return r.until(2*soon, func(r *run) error {
		now, err := r.uids()
		if err != nil {
			return err
		}
		if now != string(before) {
			return fmt.Errorf("was:\n%sis:\n%s", before, now)
		}
		out, err := r.k("get", "pods", "-o", `jsonpath={range .items[*]}{.metadata.name}{" "}{.status.conditions[?(@.type=="Ready")].status}{" "}{.status.containerStatuses[*].restartCount}{"\n"}{end}`)
		for _, l := range strings.Split(strings.TrimSpace(out), "\n") {
			f := strings.Fields(l)
			if len(f) < 3 || f[1] != "True" || slices.Contains(f[2:], "0") {
				return fmt.Errorf("not Ready again, or not restarted: %s", l)
			}
		}
		return err
	})
}

func logsAfter(r *run) error {
	return errors.Join(r.says("nginx: serving on port 80.*", "logs web"), r.says("nginx: serving on port 80.*", "logs web --previous"), r.inside("box", "echo up", "up"))
}

func serviceAfter(r *run) error {
	ip, err := r.k("get", "service", "shop", "-o", "jsonpath={.spec.clusterIP}")
	if err != nil {
		return err
	}
	return r.until(soon, func(r *run) error {
		return errors.Join(answers(ip+":8000", "shop-.*"), r.inside("box", "wget -q -O - http://"+ip+":8000/", "shop-.*"))
	})
}

// allGone deletes everything, and looks for what is left on the node.
func allGone(r *run) error {
	if err := errors.Join(os.Remove(etc+"/manifests/fixed.yaml"), r.ks("delete deployment,service,pod --all --timeout=90s")); err != nil {
		return err
	}
	return r.until(2*soon, func(r *run) error {
		pods, err1 := crictl("pods", "-q")
		containers, err2 := crictl("ps", "-aq")
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		left := append(pods, containers...)
		patterns := []string{"/run/netns/*", "/var/log/containers/*", "/var/lib/kubelet/pods/*"}
		for _, root := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} { // v2, v1
			patterns = append(patterns, root+"kubepods.slice/*-pod*", root+"kubepods.slice/*/*-pod*", root+"kubepods/pod*", root+"kubepods/*/pod*")
		}
		for _, pattern := range patterns {
			found, _ := filepath.Glob(pattern)
			left = append(left, found...)
		}
		if len(left) > 0 {
			return fmt.Errorf("left: %v", left)
		}
		return nil
	})
}
