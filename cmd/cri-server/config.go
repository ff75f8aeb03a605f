package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/seed-9a14075a/cri-server/pkg/config"
)

func newConfig() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Show and check the configuration",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(&cobra.Command{
		Use:   "default",
		Short: "Print all options with their defaults, as a file to start from",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return config.WriteDefault(cmd.OutOrStdout()) },
	}, &cobra.Command{
		Use:   "docs",
		Short: "Print the documentation of all options as Markdown",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return config.WriteDocs(cmd.OutOrStdout()) },
	}, newConfigDump(), newConfigValidate())
	return cmd
}

func newConfigDump() *cobra.Command {
	var file string
	var origin bool
	cmd := &cobra.Command{
		Use:   "dump",
		Short: "Print the configuration that serve would use, given the same flags",
		Args:  noArgs,
	}
	configFlags(cmd, &file)
	cmd.Flags().BoolVar(&origin, "origin", false, "say where each value comes from")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := config.Load(config.Sources{File: file, Flags: cmd.Flags()})
		if err != nil {
			return err
		}
		return cfg.Dump(cmd.OutOrStdout(), origin)
	}
	return cmd
}

func newConfigValidate() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "validate",
		Short: "Check the configuration; exit code 1 and a list of what is wrong if it is not good",
		Args:  noArgs,
	}
	configFlags(cmd, &file)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if _, err := config.Load(config.Sources{File: file, Flags: cmd.Flags()}); err != nil {
			return err
		}
		fmt.Fprintln(cmd.OutOrStdout(), "The configuration is good.")
		return nil
	}
	return cmd
}
