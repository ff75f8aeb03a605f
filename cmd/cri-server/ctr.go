package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/pkg/admin"
	"github.com/seed-9a14075a/cri-server/pkg/config"
)

// shims are the commands that this program answers when it is called by another name (a link to it): those of
// containerd that kind and minikube call on a node to load, name and list images.
var shims = map[string]func() *cobra.Command{"ctr": newCtr, "containerd": newContainerd}

func shimRoot(name, short string) *cobra.Command {
	return &cobra.Command{
		Use: name, Short: short, Version: version,
		SilenceErrors: true, SilenceUsage: true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return usageError{fmt.Errorf("%s %s: cri-server answers only what kind and minikube call", name, strings.Join(args, " "))}
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
}

// newContainerd answers "containerd config dump", where kind looks for the snapshotter, and --version.
func newContainerd() *cobra.Command {
	root := shimRoot("containerd", "cri-server, called as containerd")
	root.SetVersionTemplate("containerd github.com/seed-9a14075a/cri-server {{.Version}}\n")
	conf := &cobra.Command{Use: "config", Args: noArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	conf.AddCommand(&cobra.Command{
		Use:  "dump",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := config.Load(config.Sources{})
			if err != nil {
				return err
			}
			name := "overlayfs"
			if cfg.Image.Snapshotter == "copy" {
				name = "native"
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "version = 3\n\n[plugins]\n\n  [plugins.\"io.containerd.cri.v1.images\"]\n    snapshotter = %q\n", name)
			return err
		},
	})
	root.AddCommand(conf)
	return root
}

func newCtr() *cobra.Command {
	var e endpoint
	var namespace, ignored string
	root := shimRoot("ctr", "cri-server, called as ctr")
	f := root.PersistentFlags()
	f.StringVarP(&namespace, "namespace", "n", "k8s.io", "containerd's `NAMESPACE`: that of Kubernetes is the only one there is")
	f.StringVarP(&ignored, "address", "a", "", "containerd's `SOCKET`: not used")
	f.Bool("debug", false, "not used")
	f.StringVar(&e.file, "config", "", "cri-server's configuration `FILE`, for its socket")
	f.StringVar(&e.socket, "socket", "", "cri-server's CRI `SOCKET` (default: as configured)")
	f.StringVar(&e.state, "state", "", "cri-server's state `DIRECTORY` (default: as configured)")
	root.PersistentPreRunE = func(*cobra.Command, []string) error {
		if namespace != "k8s.io" && namespace != "default" {
			return usageError{fmt.Errorf("namespace %q: cri-server has that of Kubernetes only, k8s.io", namespace)}
		}
		return nil
	}
	images := &cobra.Command{Use: "images", Aliases: []string{"image", "i"}, Args: noArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	images.AddCommand(ctrImport(&e), ctrExport(&e), ctrTag(&e), ctrList(&e), ctrRemove(&e), ctrFetch(&e, "pull"))
	content := &cobra.Command{Use: "content", Args: noArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	content.AddCommand(ctrFetch(&e, "fetch"))
	root.AddCommand(images, content, &cobra.Command{Use: "version", Args: noArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		_, err := fmt.Fprintf(cmd.OutOrStdout(), "Client:\n  Version:  %s\n", version)
		return err
	}})
	return root
}

// accept takes flags that mean nothing here: what they ask for is always done, or never needed.
func accept(cmd *cobra.Command, bools, texts []string) {
	for _, b := range bools {
		cmd.Flags().Bool(b, false, "accepted, changes nothing")
	}
	for _, t := range texts {
		cmd.Flags().String(t, "", "accepted, changes nothing")
	}
}

// pinnedLabel is the label by which containerd's CRI pins images.
const pinnedLabel = "io.cri-containerd.pinned=pinned"

func ctrImport(e *endpoint) *cobra.Command {
	var labels []string
	var packed bool
	cmd := &cobra.Command{
		Use:  "import [FLAGS] FILE",
		Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			list, err := importFile(cmd, e, args[0], slices.Contains(labels, pinnedLabel), packed)
			for _, i := range list {
				names := i.RepoTags
				if len(names) == 0 {
					names = append(i.RepoDigests, i.ID)[:1]
				}
				for _, n := range names {
					if packed {
						fmt.Fprintf(cmd.OutOrStdout(), "%s (%s) saved\n", n, i.ID)
						continue
					}
					fmt.Fprintf(cmd.OutOrStdout(), "unpacking %s (%s)...done\n", n, i.ID)
				}
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&packed, "no-unpack", false, "leave it to the first container to unpack the layers")
	cmd.Flags().StringArrayVar(&labels, "label", nil, "labels; "+pinnedLabel+" keeps the images from garbage collection")
	accept(cmd, []string{"all-platforms", "digests", "local", "discard-unpacked-layers", "skip-digest-for-named", "compress-blobs"},
		[]string{"snapshotter", "platform", "base-name", "index-name"})
	return cmd
}

func ctrExport(e *endpoint) *cobra.Command {
	cmd := &cobra.Command{
		Use:  "export [FLAGS] FILE IMAGE...",
		Args: minArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withAdmin(cmd, e, func(ctx context.Context, c *admin.Client) error {
				if args[0] == "-" {
					return c.Export(ctx, cmd.OutOrStdout(), args[1:]...)
				}
				return exportFile(args[0], func(w io.Writer) error { return c.Export(ctx, w, args[1:]...) })
			})
		},
	}
	accept(cmd, []string{"all-platforms", "skip-manifest-json", "skip-non-distributable", "local"}, []string{"platform"})
	return cmd
}

func ctrTag(e *endpoint) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:  "tag [FLAGS] IMAGE NAME...",
		Args: minArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withClient(cmd, e, queryTimeout, func(ctx context.Context, c *client) error {
				for _, name := range args[1:] {
					if _, err := c.image(ctx, name); err == nil && !force {
						return fmt.Errorf("image %q: already exists", name)
					}
					if err := withAdmin(cmd, e, func(ctx context.Context, c *admin.Client) error { return c.Tag(ctx, args[0], name) }); err != nil {
						return err
					}
					fmt.Fprintln(cmd.OutOrStdout(), name)
				}
				return nil
			})
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "take the name from an image that has it")
	accept(cmd, []string{"local", "skip-reference-check"}, nil)
	return cmd
}

func ctrList(e *endpoint) *cobra.Command {
	var quiet bool
	cmd := &cobra.Command{
		Use:     "list [FLAGS] [name==NAME...]",
		Aliases: []string{"ls"},
		RunE: func(cmd *cobra.Command, args []string) error {
			var want []string
			for _, a := range args {
				name, ok := strings.CutPrefix(a, "name==")
				if !ok {
					return usageError{fmt.Errorf("filter %q: only name== is answered", a)}
				}
				want = append(want, strings.Trim(name, `"`))
			}
			return withClient(cmd, e, queryTimeout, func(ctx context.Context, c *client) error {
				r, err := c.ListImages(ctx, &runtimeapi.ListImagesRequest{})
				if err != nil {
					return err
				}
				return ctrWrite(cmd.OutOrStdout(), r.GetImages(), want, quiet)
			})
		},
	}
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "names only")
	return cmd
}

// ctrWrite writes names as containerd's CRI has them: each tag, each digest, and the ID.
func ctrWrite(w io.Writer, images []*runtimeapi.Image, want []string, quiet bool) error {
	t := table(io.Discard)
	if !quiet {
		t = table(w, "REF", "DIGEST", "SIZE")
	}
	for _, i := range images {
		for _, n := range slices.Concat(i.GetRepoTags(), i.GetRepoDigests(), []string{i.GetId()}) {
			if len(want) > 0 && !slices.Contains(want, n) {
				continue
			}
			if quiet {
				fmt.Fprintln(w, n)
			}
			_, digest, _ := strings.Cut(append(i.GetRepoDigests(), "@-")[0], "@")
			row(t, n, digest, sizeText(i.GetSize()))
		}
	}
	return t.Flush()
}

func ctrRemove(e *endpoint) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "remove [FLAGS] NAME...",
		Aliases: []string{"rm", "del", "delete"},
		Args:    minArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withAdmin(cmd, e, func(ctx context.Context, c *admin.Client) error {
				var all error
				for _, name := range args {
					if err := c.Untag(ctx, name); err != nil && !errdefs.IsNotFound(err) {
						all = errors.Join(all, err)
						continue
					}
					fmt.Fprintln(cmd.OutOrStdout(), name)
				}
				return all
			})
		},
	}
	accept(cmd, []string{"sync"}, nil)
	return cmd
}

// ctrFetch pulls; there is no way to have content without the image, and none is needed.
func ctrFetch(e *endpoint, name string) *cobra.Command {
	var platform []string
	cmd := &cobra.Command{
		Use:  name + " [FLAGS] IMAGE",
		Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, p := range platform {
				want, err := platforms.Parse(p)
				if err != nil {
					return usageError{err}
				}
				if !platforms.Default().Match(want) {
					return fmt.Errorf("platform %s: cri-server keeps images for its own, %s", p, platforms.DefaultString())
				}
			}
			return withAdmin(cmd, e, func(ctx context.Context, c *admin.Client) error {
				i, err := c.Pull(ctx, args[0], nil, progressTo(cmd.ErrOrStderr()))
				if err == nil {
					fmt.Fprintln(cmd.OutOrStdout(), i.ID)
				}
				return err
			})
		},
	}
	cmd.Flags().StringArrayVar(&platform, "platform", nil, "`PLATFORM`; must be this machine's")
	accept(cmd, []string{"all-platforms", "metadata-only", "local", "plain-http", "print-chainid"}, []string{"snapshotter", "hosts-dir"})
	return cmd
}
