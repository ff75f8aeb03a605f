// Command cri-server is a node's container runtime: the daemon that serves the CRI (serve), and the operator's tool to look
// at it and at its images.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// version is set by the linker.
var version = "v0.0.0-unknown"

// Exit codes.
const (
	exitFailed = 1
	exitUsage  = 2
)

// usageError is a command line that makes no sense.
type usageError struct{ error }

func main() {
	if shim := shims[filepath.Base(os.Args[0])]; shim != nil {
		os.Exit(execute(shim(), os.Args[1:]))
	}
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int { return execute(newRoot(), args) }

func execute(cmd *cobra.Command, args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	defer stop()
	cmd.SetArgs(args)
	err := cmd.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintf(os.Stderr, "%s: %v\n", cmd.Name(), err)
	var usage usageError
	if errors.As(err, &usage) {
		return exitUsage
	}
	return exitFailed
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "cri-server",
		Short: "A container runtime for Kubernetes nodes",
		Args:  noArgs,
		// Cobra would print an error between its usage and ours.
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(newServe(), newVersion(), newConfig(), newDoctor(), newStatus(), newInspect(), newImage(), newRegistry(), newGC())
	return root
}

func newVersion() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			fmt.Fprintln(cmd.OutOrStdout(), "cri-server", version)
			if b, ok := debug.ReadBuildInfo(); ok {
				fmt.Fprintln(cmd.OutOrStdout(), b.GoVersion)
			}
			return nil
		},
	}
}

// noArgs and the like make a wrong count of arguments a usage error.
func noArgs(cmd *cobra.Command, args []string) error { return usage(cobra.NoArgs(cmd, args)) }

func exactArgs(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error { return usage(cobra.ExactArgs(n)(cmd, args)) }
}

func minArgs(n int) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error { return usage(cobra.MinimumNArgs(n)(cmd, args)) }
}

func usage(err error) error {
	if err != nil {
		return usageError{err}
	}
	return nil
}
