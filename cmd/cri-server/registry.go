package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/spf13/cobra"

	"github.com/seed-9a14075a/cri-server/pkg/config"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore/registry"
)

func newRegistry() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "registry",
		Short: "Look at how registries are reached",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newRegistryTest())
	return cmd
}

func newRegistryTest() *cobra.Command {
	var file, output string
	var creds credentials
	cmd := &cobra.Command{
		Use:   "test HOST|IMAGE",
		Short: "Ask each host that a pull would try, and say what it answers",
		Long: "Asks each mirror and the registry itself, in the order in which a pull tries them, with the configuration and the credentials that it would use. " +
			"The server need not run. The exit code is 1 if no host would serve the pull.",
		Args: exactArgs(1),
	}
	cmd.Flags().StringVar(&file, "config", "", "the server's configuration `FILE`")
	creds.flags(cmd)
	outputFlag(cmd, &output)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := checkOutput(output); err != nil {
			return err
		}
		auth, err := creds.read(cmd.InOrStdin())
		if err != nil {
			return err
		}
		cfg, err := config.Load(config.Sources{File: file})
		if err != nil {
			return err
		}
		ref, image, err := hostOrImage(args[0])
		if err != nil {
			return usageError{err}
		}
		c := registry.New(registry.Config{
			CertsDirs: []string{cfg.Image.CertsDir}, RegistriesFiles: cfg.Image.RegistriesFiles, AuthFiles: cfg.Image.AuthFiles,
			StallTimeout: cfg.Image.PullStallTimeout, StallBytes: cfg.Image.PullStallBytes,
		})
		defer c.Close()
		var given registry.Credentials
		if auth != nil {
			given = registry.Credentials(*auth)
		}
		probes, err := c.Probe(cmd.Context(), ref, given, image)
		if err != nil {
			return err
		}
		if output == "json" {
			err = writeJSON(cmd.OutOrStdout(), probes)
		} else {
			err = writeProbes(cmd.OutOrStdout(), probes)
		}
		if err != nil {
			return err
		}
		for _, p := range probes {
			if p.Error == "" {
				return nil
			}
		}
		return errors.New("no host would serve the pull")
	}
	return cmd
}

// hostOrImage reads "docker.io", "registry.example:5000" or an image's name. A word without dot, colon or slash is an image.
func hostOrImage(arg string) (ref reference.Named, image bool, err error) {
	if !strings.Contains(arg, "/") && strings.ContainsAny(arg, ".:") {
		if ref, err := reference.ParseNormalizedNamed(arg + "/any"); err == nil && reference.Domain(ref) == arg {
			return ref, false, nil
		}
	}
	ref, err = reference.ParseNormalizedNamed(arg)
	if err != nil {
		return nil, false, err
	}
	return reference.TagNameOnly(ref), true, nil
}

func writeProbes(w io.Writer, probes []registry.Probe) error {
	t := table(w)
	used := false
	for i, p := range probes {
		row(t, fmt.Sprintf("%d. %s", i+1, p.Role), p.Host)
		from := p.From
		if from == "" {
			from = "default"
		}
		row(t, "   configured by", from)
		row(t, "   may", join(p.May))
		row(t, "   TLS", p.TLS)
		if p.Ping != "" {
			row(t, "   answers", fmt.Sprintf("%s in %s", p.Ping, p.Took.Round(time.Millisecond)))
		}
		if p.Challenge != "" {
			row(t, "   wants", p.Challenge)
		}
		for _, c := range p.Credentials {
			row(t, "   credentials", c)
		}
		if p.Image != "" {
			row(t, "   image", p.Image)
		}
		switch {
		case p.Error != "":
			row(t, "   NO", p.Error)
		case used:
			row(t, "   spare", "an earlier host serves the pull")
		default:
			used = true
			row(t, "   USED", "a pull is served from here")
		}
	}
	return t.Flush()
}
