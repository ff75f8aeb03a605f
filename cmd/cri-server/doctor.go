package main

import (
	"errors"

	"github.com/spf13/cobra"

	"github.com/seed-9a14075a/cri-server/pkg/config"
	"github.com/seed-9a14075a/cri-server/pkg/doctor"
)

func newDoctor() *cobra.Command {
	var file, output string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look at this node and say what pods will lack on it; exit code 1 if they can't run",
		Args:  noArgs,
	}
	configFlags(cmd, &file)
	outputFlag(cmd, &output)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := checkOutput(output); err != nil {
			return err
		}
		cfg, err := config.Load(config.Sources{File: file, Flags: cmd.Flags()})
		if err != nil {
			return err
		}
		list := doctor.Examine(cmd.Context(), cfg)
		write := doctor.WriteText
		if output == "json" {
			write = doctor.WriteJSON
		}
		if err := write(cmd.OutOrStdout(), list); err != nil {
			return err
		}
		if doctor.Worst(list) == doctor.Error {
			return errors.New("pods can't run on this node: see above")
		}
		return nil
	}
	return cmd
}
