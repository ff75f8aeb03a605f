package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/seed-9a14075a/cri-server/pkg/admin"
)

func newGC() *cobra.Command {
	var e endpoint
	var output string
	var dry bool
	cmd := &cobra.Command{
		Use:   "gc",
		Short: "Take down what no pod, container or image stands for",
		Long: "Looks for processes, cgroups, mounts, network namespaces, addresses, nftables elements, snapshots and layers that are this server's " +
			"and that no record stands for, as a crash may leave them, takes them down, and lists them with the reason. The server does the same at each start. " +
			"The exit code is 1 if something could not be taken down or looked at.",
		Args: noArgs,
	}
	e.flags(cmd)
	outputFlag(cmd, &output)
	cmd.Flags().BoolVar(&dry, "dry-run", false, "list it only")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := checkOutput(output); err != nil {
			return err
		}
		return withAdmin(cmd, &e, func(ctx context.Context, c *admin.Client) error {
			found, err := c.Collect(ctx, dry)
			if err != nil {
				return err
			}
			return printGarbage(cmd, output, found)
		})
	}
	return cmd
}

// printGarbage returns an error when something is left.
func printGarbage(cmd *cobra.Command, output string, found admin.Collected) error {
	left := 0
	for _, g := range found.Garbage {
		if g.Error != "" {
			left++
		}
	}
	if output == "json" {
		if err := writeJSON(cmd.OutOrStdout(), found); err != nil {
			return err
		}
	} else if len(found.Garbage) > 0 {
		t := table(cmd.OutOrStdout(), "KIND", "NAME", "WHY")
		for _, g := range found.Garbage {
			why := g.Why
			if g.Error != "" {
				why += "; not taken down: " + g.Error
			}
			row(t, g.Kind, g.Name, why)
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	switch {
	case found.Error != "":
		return errors.New(found.Error)
	case left > 0:
		return fmt.Errorf("%d things could not be taken down", left)
	}
	return nil
}
