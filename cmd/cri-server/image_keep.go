package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/seed-9a14075a/cri-server/pkg/admin"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore"
)

func newImageUntag(e *endpoint) *cobra.Command {
	return &cobra.Command{
		Use:   "untag NAME...",
		Short: "Remove names of images; an image goes with its last name",
		Args:  minArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withAdmin(cmd, e, func(ctx context.Context, c *admin.Client) error {
				for _, name := range args {
					if err := c.Untag(ctx, name); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
}

func newImagePush(e *endpoint) *cobra.Command {
	var creds credentials
	cmd := &cobra.Command{
		Use:   "push NAME",
		Short: "Upload an image to the registry that its name names",
		Args:  exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			auth, err := creds.read(cmd.InOrStdin())
			if err != nil {
				return err
			}
			return withAdmin(cmd, e, func(ctx context.Context, c *admin.Client) error { return c.Push(ctx, args[0], auth) })
		},
	}
	creds.flags(cmd)
	return cmd
}

func newImageVerify(e *endpoint) *cobra.Command {
	return checkCommand(e, &cobra.Command{
		Use:   "verify [IMAGE...]",
		Short: "Compare what the store holds with digests and checksums",
		Long: "Reads every blob and every unpacked file of the images, or of the whole store, and compares them with their digests and checksums. " +
			"The store stays in use. The exit code is 1 if something is damaged.",
	}, false)
}

func newImageRepair(e *endpoint) *cobra.Command {
	return checkCommand(e, &cobra.Command{
		Use:   "repair [IMAGE...]",
		Short: "Verify, and make whole what is damaged",
		Long: "Damaged layers are made anew from their blobs where those are good, everything else is pulled again. An image that can't be made whole is " +
			"listed no more, so that the next pull brings it. The exit code is 1 if that happened.",
	}, true)
}

func checkCommand(e *endpoint, cmd *cobra.Command, repair bool) *cobra.Command {
	var output string
	var quick bool
	outputFlag(cmd, &output)
	cmd.Flags().BoolVar(&quick, "quick", false, "compare sizes, types, owners and modes only")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if err := checkOutput(output); err != nil {
			return err
		}
		var r *imagestore.Report
		err := withAdmin(cmd, e, func(ctx context.Context, c *admin.Client) (err error) {
			r, err = c.Verify(ctx, quick, repair, args...)
			return err
		})
		if err != nil {
			return err
		}
		if output == "json" {
			err = writeJSON(cmd.OutOrStdout(), r)
		} else {
			err = writeReport(cmd.OutOrStdout(), r)
		}
		switch {
		case err != nil:
			return err
		case repair && len(r.Dropped) > 0:
			return fmt.Errorf("%d images could not be made whole and are listed no more", len(r.Dropped))
		case !repair && len(r.Problems) > 0:
			return errors.New("the store is damaged: cri-server image repair makes it whole")
		}
		return nil
	}
	return cmd
}

func writeReport(w io.Writer, r *imagestore.Report) error {
	if len(r.Problems) > 0 {
		t := table(w, "KIND", "DIGEST", "PATH", "WHAT", "IMAGES")
		for _, p := range r.Problems {
			var images []string
			for _, i := range p.Images {
				images = append(images, fmt.Sprintf("%.12s", strings.TrimPrefix(i, "sha256:")))
			}
			row(t, p.Kind, fmt.Sprintf("%.12s", p.Digest.Encoded()), p.Path, p.What, strings.Join(images, " "))
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(w, "%d blobs and %d layers checked, %d problems\n", r.Blobs, r.Layers, len(r.Problems))
	if len(r.Repaired) > 0 {
		_, err = fmt.Fprintf(w, "%d repaired\n", len(r.Repaired))
	}
	for _, d := range r.Dropped {
		_, err = fmt.Fprintln(w, "dropped", d)
	}
	return err
}

func newImagePrune(e *endpoint) *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Remove images without a tag that nothing uses",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return withAdmin(cmd, e, func(ctx context.Context, c *admin.Client) error {
				p, err := c.Prune(ctx, all)
				if err != nil {
					return err
				}
				for _, id := range p.Images {
					fmt.Fprintln(cmd.OutOrStdout(), id)
				}
				fmt.Fprintln(cmd.OutOrStdout(), sizeText(p.Bytes), "freed")
				return nil
			})
		},
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "also those with tags; pinned ones and those of containers stay")
	return cmd
}

func newImageUsage(e *endpoint) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "du",
		Short: "Show what each image takes on disk",
		Args:  noArgs,
	}
	outputFlag(cmd, &output)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := checkOutput(output); err != nil {
			return err
		}
		return withAdmin(cmd, e, func(ctx context.Context, c *admin.Client) error {
			list, err := c.DiskUsage(ctx)
			if err != nil {
				return err
			}
			if output == "json" {
				return writeJSON(cmd.OutOrStdout(), list)
			}
			t := table(cmd.OutOrStdout(), "IMAGE", "ID", "BLOBS", "UNPACKED", "SHARED", "CONTAINERS")
			for _, u := range list {
				name := "-"
				if len(u.Names) > 0 {
					name = u.Names[0]
				}
				row(t, name, fmt.Sprintf("%.12s", strings.TrimPrefix(u.ID, "sha256:")), sizeText(uint64(u.Blobs)), sizeText(uint64(u.Layers)),
					sizeText(uint64(u.Shared)), u.Snapshots)
			}
			return t.Flush()
		})
	}
	return cmd
}
