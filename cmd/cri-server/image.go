package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/pkg/admin"
)

// removeTimeout is for deleting what may be many files.
const removeTimeout = 5 * time.Minute

func newImage() *cobra.Command {
	var e endpoint
	cmd := &cobra.Command{
		Use:   "image",
		Short: "Pull, push, list, name, remove, import, export, check and repair images",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	e.flags(cmd)
	cmd.AddCommand(newImagePull(&e), newImageList(&e), newImageRemove(&e), newImageInspect(&e),
		newImageImport(&e), newImageExport(&e), newImageTag(&e), newImageUntag(&e), newImagePin(&e), newImagePush(&e),
		newImageVerify(&e), newImageRepair(&e), newImagePrune(&e), newImageUsage(&e))
	return cmd
}

// withClient runs fn with a connection to the CRI; a timeout of 0 is none.
func withClient(cmd *cobra.Command, e *endpoint, timeout time.Duration, fn func(context.Context, *client) error) error {
	c, err := e.dial()
	if err != nil {
		return err
	}
	defer c.Close()
	ctx := cmd.Context()
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	return e.explain(fn(ctx, c))
}

func adminPath(e *endpoint) string { return filepath.Join(e.state, adminSocket) }

// withAdmin runs fn with a client of the admin socket.
func withAdmin(cmd *cobra.Command, e *endpoint, fn func(context.Context, *admin.Client) error) error {
	if err := e.load(); err != nil {
		return err
	}
	c := admin.NewClient(adminPath(e))
	defer c.Close()
	return fn(cmd.Context(), c)
}

func newImageList(e *endpoint) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List images",
		Args:    noArgs,
	}
	outputFlag(cmd, &output)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := checkOutput(output); err != nil {
			return err
		}
		return withClient(cmd, e, queryTimeout, func(ctx context.Context, c *client) error {
			r, err := c.ListImages(ctx, &runtimeapi.ListImagesRequest{})
			if err != nil {
				return err
			}
			if output == "json" {
				return writeJSON(cmd.OutOrStdout(), r.GetImages())
			}
			return writeImages(cmd.OutOrStdout(), r.GetImages())
		})
	}
	return cmd
}

// writeImages writes one line per name, so that each can be copied; an image without a tag shows its digests.
func writeImages(w io.Writer, images []*runtimeapi.Image) error {
	type line struct{ name, id, size, pinned string }
	var lines []line
	for _, i := range images {
		names := i.GetRepoTags()
		if len(names) == 0 {
			names = i.GetRepoDigests()
		}
		if len(names) == 0 {
			names = []string{"-"}
		}
		pinned := ""
		if i.GetPinned() {
			pinned = "pinned"
		}
		for _, n := range names {
			lines = append(lines, line{n, fmt.Sprintf("%.13s", strings.TrimPrefix(i.GetId(), "sha256:")), sizeText(i.GetSize()), pinned})
		}
	}
	slices.SortFunc(lines, func(a, b line) int { return strings.Compare(a.name+a.id, b.name+b.id) })
	t := table(w, "NAME", "ID", "SIZE", "")
	for _, l := range lines {
		row(t, l.name, l.id, l.size, l.pinned)
	}
	return t.Flush()
}

func newImageRemove(e *endpoint) *cobra.Command {
	return &cobra.Command{
		Use:     "remove IMAGE...",
		Aliases: []string{"rm"},
		Short:   "Remove images, or names of images",
		Args:    minArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withClient(cmd, e, removeTimeout, func(ctx context.Context, c *client) error {
				for _, name := range args {
					// The call itself never says that there was nothing.
					if _, err := c.image(ctx, name); err != nil {
						return err
					}
					if _, err := c.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: name}}); err != nil {
						return err
					}
				}
				return nil
			})
		},
	}
}

func (c *client) image(ctx context.Context, name string) (*runtimeapi.ImageStatusResponse, error) {
	r, err := c.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: name}, Verbose: true})
	if err != nil {
		return nil, err
	}
	if r.GetImage() == nil {
		return nil, fmt.Errorf("there is no image %s", name)
	}
	return r, nil
}

func newImageInspect(e *endpoint) *cobra.Command {
	return &cobra.Command{
		Use:   "inspect IMAGE",
		Short: "Show an image and its configuration as JSON",
		Args:  exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withClient(cmd, e, queryTimeout, func(ctx context.Context, c *client) error {
				r, err := c.image(ctx, args[0])
				if err != nil {
					return err
				}
				return writeJSON(cmd.OutOrStdout(), map[string]any{"image": r.GetImage(), "info": rawInfo(r.GetInfo())})
			})
		},
	}
}

func newImageImport(e *endpoint) *cobra.Command {
	var pin, packed bool
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "Import the images of an OCI or docker archive; - reads stdin",
		Args:  exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			list, err := importFile(cmd, e, args[0], pin, packed)
			for _, i := range list {
				names := i.RepoTags
				if len(names) == 0 {
					names = i.RepoDigests
				}
				fmt.Fprintln(cmd.OutOrStdout(), i.ID, strings.Join(names, " "))
			}
			return err
		},
	}
	cmd.Flags().BoolVar(&packed, "no-unpack", false, "leave it to the first container to unpack the layers")
	cmd.Flags().BoolVar(&pin, "pin", false, "keep the images from garbage collection")
	return cmd
}

// importFile imports an archive, "-" for stdin.
func importFile(cmd *cobra.Command, e *endpoint, name string, pin, packed bool) (list []admin.Image, err error) {
	in := cmd.InOrStdin()
	if name != "-" {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	err = withAdmin(cmd, e, func(ctx context.Context, c *admin.Client) error {
		var err error
		list, err = c.Import(ctx, in, packed)
		for _, i := range list {
			if pin {
				err = errors.Join(err, c.Pin(ctx, i.ID, true))
			}
		}
		return err
	})
	return list, err
}

func newImageExport(e *endpoint) *cobra.Command {
	return &cobra.Command{
		Use:   "export FILE IMAGE...",
		Short: "Export images as an OCI archive; - writes to stdout",
		Args:  minArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withAdmin(cmd, e, func(ctx context.Context, c *admin.Client) error {
				if args[0] == "-" {
					return c.Export(ctx, cmd.OutOrStdout(), args[1:]...)
				}
				return exportFile(args[0], func(w io.Writer) error { return c.Export(ctx, w, args[1:]...) })
			})
		},
	}
}

// exportFile writes a file that is there whole or not at all.
func exportFile(path string, export func(io.Writer) error) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	if err := export(f); err != nil {
		return err
	}
	umask := unix.Umask(0)
	unix.Umask(umask)
	if err := errors.Join(f.Chmod(0o666&^os.FileMode(umask)), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

func newImageTag(e *endpoint) *cobra.Command {
	return &cobra.Command{
		Use:   "tag IMAGE NAME",
		Short: "Give an image a further name",
		Args:  exactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withAdmin(cmd, e, func(ctx context.Context, c *admin.Client) error { return c.Tag(ctx, args[0], args[1]) })
		},
	}
}

func newImagePin(e *endpoint) *cobra.Command {
	var off bool
	cmd := &cobra.Command{
		Use:   "pin IMAGE",
		Short: "Keep an image from garbage collection",
		Args:  exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return withAdmin(cmd, e, func(ctx context.Context, c *admin.Client) error { return c.Pin(ctx, args[0], !off) })
		},
	}
	cmd.Flags().BoolVar(&off, "off", false, "no longer keep it")
	return cmd
}
