package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/seed-9a14075a/cri-server/test/behaviour"
)

const busybox = "registry.k8s.io/e2e-test-images/busybox:1.29-2"

// first is what everything else needs.
var first = []promise{
	{"the node is registered with runtime, handlers and capacity", registered},
	{"kubectl run: a pod Ready", runPod},
}

// commands are what kubectl does to single pods.
var commands = []promise{
	{"kubectl logs: all, --tail, --timestamps, --previous, --all-containers", logs},
	{"kubectl logs -f to the end of the container", follow},
	{"kubectl exec: input, output, exit status", execute},
	{"kubectl exec -it: a terminal and its size", executeTerminal},
	{"kubectl attach -it, and -i with the end of input", attach},
	{"kubectl run -i --rm with a pipe", runPipe},
	{"kubectl port-forward to a pod and to a service", portForward},
	{"kubectl debug: an ephemeral container in the processes of another", debugTarget},
	{"kubectl debug: a copy of a pod, and the node", debugCopy},
	{"kubectl cp: a file and a tree, there and back", copyFiles},
	{"kubectl delete: grace period, preStop, --force", remove},
}

func nodeReady(r *run) error {
	return r.says("True", "get node "+nodeName+" -o jsonpath={.status.conditions[?(@.type==\"Ready\")].status}")
}

func registered(r *run) error {
	of := "get node " + nodeName + " -o jsonpath="
	return errors.Join(
		r.says("cri-server://.+", of+"{.status.nodeInfo.containerRuntimeVersion}"),
		r.says(`.*"name":"runc".*`, of+"{.status.runtimeHandlers}"),
		r.says("true true", of+`{.status.runtimeHandlers[?(@.name=="")].features.recursiveReadOnlyMounts}{" "}`+
			`{.status.runtimeHandlers[?(@.name=="")].features.userNamespaces}`),
		r.says("110", of+"{.status.allocatable.pods}"))
}

func runPod(r *run) error {
	// The service account comes from the controller manager.
	if err := r.becomes("default", "get serviceaccount default -o jsonpath={.metadata.name}"); err != nil {
		return err
	}
	return errors.Join(r.ks("run web --image=registry.k8s.io/e2e-test-images/nginx:1.14-2 --port=80", "run box --image="+busybox+" -- sleep 100000"),
		r.ready("web", "box"))
}

func logs(r *run) error {
	err := r.apply(object("talker"))
	if err != nil {
		return err
	}
	of := "logs talker -c one "
	return errors.Join(
		r.becomes("[1-9][0-9]*", "get pod talker -o jsonpath={.status.containerStatuses[0].restartCount}"),
		r.becomes("one 1\none 2\none 3", of),
		r.says("one 3", of+"--tail=1"),
		r.says(`\d{4}-\d\d-\d\dT[0-9:.]+Z one 1\n.*`, of+"--timestamps"),
		r.says("one 1\none 2\none 3", of+"--previous"),
		r.says("one 1", of+"--limit-bytes=6"),
		r.says(`.*\[pod/talker/two\] two on stderr.*`, "logs talker --all-containers --prefix"))
}

func follow(r *run) error {
	if err := r.apply(object("counter")); err != nil {
		return err
	}
	if err := r.becomes("Running|Succeeded", "get pod counter -o jsonpath={.status.phase}"); err != nil {
		return err
	}
	out, err := r.k("logs", "-f", "counter")
	if err != nil {
		return err
	}
	lines := strings.Split(strings.TrimSpace(out), "\n")
	for i, l := range lines {
		if l != fmt.Sprintf("line %d", i) {
			return fmt.Errorf("line %d is %q", i, l)
		}
	}
	if len(lines) != 3000 {
		return fmt.Errorf("%d lines of 3000", len(lines))
	}
	return nil
}

func execute(r *run) error {
	sent := strings.Repeat("a line of a large input\n", 100000)
	got, err := r.fed(sent, "exec", "-i", "box", "--", "cat")
	if err == nil && got != sent {
		err = fmt.Errorf("%d bytes of %d came back", len(got), len(sent))
	}
	_, failed := r.k("exec", "box", "--", "sh", "-c", "exit 42")
	if code(failed) != 42 {
		err = errors.Join(err, fmt.Errorf("the exit status is %d, not 42", code(failed)))
	}
	_, missing := r.k("exec", "box", "--", "no-such-program")
	if code(missing) != 127 && code(missing) != 126 && code(missing) != 1 {
		err = errors.Join(err, fmt.Errorf("a program that isn't there: %w", missing))
	}
	return errors.Join(err, r.inside("box", "echo out; echo err >&2", "out"))
}

func executeTerminal(r *run) error {
	err := r.terminal(func(t *tty) error {
		return errors.Join(t.send("echo in a $((40+2)) terminal; stty size\n"), t.await("in a 42 terminal"), t.await("40 132"),
			t.size(50, 100), t.send("sleep 1; stty size; tty\n"), t.await("50 100"), t.await("/dev/pts/"), t.send("exit 3\n"))
	}, "exec", "-it", "box", "--", "sh")
	if code(err) != 3 {
		return fmt.Errorf("the status is %d, not 3: %w", code(err), err)
	}
	return nil
}

func attach(r *run) error {
	if err := errors.Join(r.apply(object("listeners")), r.ready("listener", "shell")); err != nil {
		return err
	}
	err := r.terminal(func(t *tty) error {
		return errors.Join(t.send("echo attached $((6*7))\n"), t.await("attached 42"), t.send("exit 4\n"))
	}, "attach", "-it", "shell")
	if err != nil && code(err) != 4 { // kubectl tells no status of an attach
		return err
	}
	out, err := r.fed("first\nsecond\n", "attach", "-i", "listener")
	return errors.Join(err, matches(out, "(?:If you don't.*\n)?heard first\nheard second\nheard the end"),
		r.becomes("4", "get pod shell -o jsonpath={.status.containerStatuses[0].state.terminated.exitCode}"),
		r.becomes("Succeeded", "get pod listener -o jsonpath={.status.phase}"))
}

func runPipe(r *run) error {
	out, err := r.fed("through a pipe\n", "run", "pipe", "-i", "--rm", "--quiet", "--restart=Never", "--image="+busybox, "--", "sed", "s/^/came /")
	return errors.Join(err, matches(out, "came through a pipe"), r.becomes("", "get pod pipe --ignore-not-found"))
}

// forwarded asks for a page through a port-forward.
func (r *run) forwarded(to, port string) error {
	ctx, cancel := context.WithTimeout(r.ctx, time.Minute)
	defer cancel()
	c := r.kubectl(ctx, "port-forward", to, ":"+port)
	out, err := c.StdoutPipe()
	if err != nil {
		return err
	}
	if err := c.Start(); err != nil {
		return err
	}
	defer func() { cancel(); _ = c.Wait() }()
	line, err := bufio.NewReader(out).ReadString('\n')
	at := regexp.MustCompile(`127\.0\.0\.1:\d+`).FindString(line)
	if err != nil || at == "" {
		return fmt.Errorf("port-forward says %q: %w", line, err)
	}
	for range 5 {
		if err := behaviour.Welcomed(at); err != nil {
			return err
		}
	}
	return nil
}

func portForward(r *run) error {
	if err := r.ks("expose pod web --port=8000 --target-port=80"); err != nil {
		return err
	}
	return errors.Join(r.forwarded("pod/web", "80"), r.forwarded("service/web", "8000"))
}

func debugTarget(r *run) error {
	// The web server is process 1 of its container, and the ephemeral container is to see it there.
	// It waits for a line, or it might have ended before kubectl is attached.
	out, err := r.fed("go\n", "debug", "web", "--quiet", "-i", "--image="+busybox, "--target=web", "-c", "look", "--",
		"sh", "-c", "read x; cat /proc/1/cmdline | tr '\\0' ' '; echo; wget -q -O - http://127.0.0.1/; cat /proc/1/root/etc/hostname")
	if err != nil {
		return err
	}
	return errors.Join(matches(out, ".*nginx.*Welcome to nginx.*web"),
		r.becomes("0", "get pod web -o jsonpath={.status.ephemeralContainerStatuses[0].state.terminated.exitCode}"),
		r.says("0", "get pod web -o jsonpath={.status.containerStatuses[0].restartCount}"))
}

func debugCopy(r *run) error {
	if err := errors.Join(r.ks("debug box --copy-to=copied --share-processes --image="+busybox+" -c extra -- sleep 100000"), r.ready("copied")); err != nil {
		return err
	}
	out, err := r.fed("go\n", "debug", "node/"+nodeName, "--quiet", "-i", "--profile=sysadmin", "--image="+busybox, "--",
		"sh", "-c", "read x; cat /host/etc/hostname; ls /host/usr/local/bin/cri-server; cat /proc/1/comm; ip -o link | grep -c ' knode0@'")
	host, _ := os.Hostname()
	return errors.Join(err, matches(out, host+"\n/host/usr/local/bin/cri-server\nsystemd\n1"),
		r.inside("copied -c extra", "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -o 'sleep 100000' | wc -l", "[2-9]"),
		r.ks("delete pod copied --now"))
}

func copyFiles(r *run) error {
	dir, err := os.MkdirTemp("", "cp-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	if err := errors.Join(os.MkdirAll(filepath.Join(dir, "tree/below"), 0o755), os.WriteFile(filepath.Join(dir, "tree/below/big"), big, 0o640),
		os.WriteFile(filepath.Join(dir, "one"), []byte("one file\n"), 0o644)); err != nil {
		return err
	}
	err = r.ks("cp "+dir+"/one box:/tmp/uno", "cp "+dir+"/tree box:/tmp", "cp box:/tmp/tree "+dir+"/back", "cp box:/tmp/uno "+dir+"/eins")
	if err != nil {
		return err
	}
	back, err1 := os.ReadFile(filepath.Join(dir, "back/below/big"))
	one, err2 := os.ReadFile(filepath.Join(dir, "eins"))
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	if !bytes.Equal(back, big) || string(one) != "one file\n" {
		return fmt.Errorf("%d bytes of %d came back, and %q", len(back), len(big), one)
	}
	return r.inside("box", "sha256sum </tmp/tree/below/big | cut -d' ' -f1; stat -c %a /tmp/tree/below/big", fmt.Sprintf("%x\n640", sha256.Sum256(big)))
}

func remove(r *run) error {
	if err := errors.Join(r.apply(object("endings")), r.ready("polite", "deaf", "stuck")); err != nil {
		return err
	}
	began := time.Now()
	err := r.ks("delete pod polite")
	if took := time.Since(began); took > 15*time.Second {
		err = errors.Join(err, fmt.Errorf("polite took %v", took))
	}
	b, readErr := os.ReadFile("/data/polite/end")
	err = errors.Join(err, readErr, matches(string(b), "preStop\nTERM"))
	began = time.Now()
	err = errors.Join(err, r.ks("delete pod deaf --grace-period=2"))
	if took := time.Since(began); took < 2*time.Second || took > 15*time.Second {
		err = errors.Join(err, fmt.Errorf("deaf took %v of 2 s", took))
	}
	return errors.Join(err, r.ks("delete pod stuck --force --grace-period=0"), r.until(soon, func(*run) error { return nobody("stuck") }))
}
