// Command testnode runs a program on a test node:
//
//	testnode [flags] PROGRAM [ARG...]
//
// The program finds the node in its environment: CONTAINER_RUNTIME_ENDPOINT and IMAGE_SERVICE_ENDPOINT for crictl, NODE_DIR,
// NODE_REGISTRY, and TMPDIR, which is removed with the node. Testnode ends with the program's status, or with 1 when
// something of the node was left behind.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/seed-9a14075a/cri-server/test/testnode"
)

func main() {
	command := flag.String("server", "", "shell `command` to run instead of bin/cri-server; it sees NODE_DIR, NODE_SOCKET and NODE_CERTS")
	repo := flag.String("repo", "", "the repository's root; found upwards from the working directory if empty")
	config := flag.String("config", "", "`file` with further cri-server configuration")
	big := flag.Bool("big", false, "serve bench/big:200m too")
	noUnified := flag.Bool("no-unified", false, "hide the cgroup2 of a hybrid hierarchy from the node: crun refuses such a machine")
	logCopy := flag.String("log", "", "keep the server's log in this `file`")
	flag.Parse()
	if flag.NArg() == 0 {
		fmt.Fprintln(os.Stderr, "usage: testnode [flags] PROGRAM [ARG...]")
		os.Exit(2)
	}
	if err := testnode.Isolate(nil); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if *noUnified {
		if err := testnode.HideUnified(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	o := testnode.Options{Repo: *repo, Command: *command, Big: *big}
	if *config != "" {
		b, err := os.ReadFile(*config)
		if err != nil {
			fmt.Fprintln(os.Stderr, "testnode:", err)
			os.Exit(1)
		}
		o.Config = string(b)
	}
	code, err := run(o, *logCopy, flag.Args())
	if err != nil {
		fmt.Fprintln(os.Stderr, "testnode:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

func run(o testnode.Options, logCopy string, argv []string) (code int, err error) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	n, err := testnode.Start(ctx, o)
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, n.Stop()) }()
	if logCopy != "" {
		defer func() {
			b, _ := os.ReadFile(n.Log())
			if m, err := os.ReadFile(filepath.Join(n.State, "monitor", "monitor.log")); err == nil {
				b = append(append(b, "\n== cri-monitor\n"...), m...)
			}
			_ = os.WriteFile(logCopy, b, 0o644)
		}()
	}
	if err := n.WarmUp(ctx); err != nil {
		return 1, fmt.Errorf("%w\n%s", err, n.LogTail())
	}
	before := testnode.Take()
	c := exec.CommandContext(ctx, argv[0], argv[1:]...)
	c.Cancel = func() error { return c.Process.Signal(syscall.SIGINT) }
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.Env = append(os.Environ(), "CONTAINER_RUNTIME_ENDPOINT=unix://"+n.Socket, "IMAGE_SERVICE_ENDPOINT=unix://"+n.Socket,
		"NODE_DIR="+n.Dir, "NODE_REGISTRY="+testnode.RegistryAddress, "TMPDIR="+filepath.Join(n.Dir, "tmp"))
	err = c.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code, err = max(exit.ExitCode(), 1), nil
	}
	if err != nil {
		return 1, err
	}
	left, err := n.RemovePods(context.WithoutCancel(ctx))
	if left > 0 {
		fmt.Printf("testnode: the program left %d pods, which were removed\n", left)
	}
	if leaks := n.Leaks(before, nil); len(leaks) > 0 && o.Command == "" {
		err = errors.Join(err, errors.New("LEAK: left on the node:\n\t"+testnode.Lines(leaks)))
	}
	return code, err
}
