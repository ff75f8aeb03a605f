package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/pkg/admin"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore"
)

// credentials are the flags of commands that speak to registries.
type credentials struct {
	user  string
	stdin bool
}

func (c *credentials) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&c.user, "username", "", "`NAME` for the registry; needs --password-stdin")
	cmd.Flags().BoolVar(&c.stdin, "password-stdin", false, "read the password for the registry from stdin")
}

// read returns nil where no credentials are given.
func (c *credentials) read(in io.Reader) (*imagestore.Auth, error) {
	if (c.user != "") != c.stdin {
		return nil, usageError{errors.New("--username and --password-stdin go together")}
	}
	if !c.stdin {
		return nil, nil
	}
	b, err := io.ReadAll(io.LimitReader(in, 64<<10))
	if err != nil {
		return nil, fmt.Errorf("password: %w", err)
	}
	return &imagestore.Auth{Username: c.user, Password: strings.TrimRight(string(b), "\r\n")}, nil
}

func newImagePull(e *endpoint) *cobra.Command {
	var creds credentials
	var quiet bool
	cmd := &cobra.Command{
		Use:   "pull IMAGE",
		Short: "Pull an image",
		Args:  exactArgs(1),
	}
	creds.flags(cmd)
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "print the image's ID only")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		auth, err := creds.read(cmd.InOrStdin())
		if err != nil {
			return err
		}
		var show func([]imagestore.LayerProgress)
		if !quiet {
			show = progressTo(cmd.ErrOrStderr())
		}
		var id string
		err = withAdmin(cmd, e, func(ctx context.Context, c *admin.Client) error {
			i, err := c.Pull(ctx, args[0], auth, show)
			if err == nil {
				id = i.ID
			}
			return err
		})
		if errdefs.IsUnavailable(err) && !adminAnswers(cmd.Context(), e) {
			// Another runtime's socket, or not root: the CRI has all but the progress.
			id, err = pullByCRI(cmd, e, args[0], auth)
		}
		if err == nil {
			fmt.Fprintln(cmd.OutOrStdout(), id)
		}
		return err
	}
	return cmd
}

func adminAnswers(ctx context.Context, e *endpoint) bool {
	c := admin.NewClient(adminPath(e))
	defer c.Close()
	_, err := c.Operations(ctx)
	return err == nil
}

func pullByCRI(cmd *cobra.Command, e *endpoint, ref string, auth *imagestore.Auth) (id string, err error) {
	req := &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref, UserSpecifiedImage: ref}}
	if auth != nil {
		req.Auth = &runtimeapi.AuthConfig{Username: auth.Username, Password: auth.Password}
	}
	// A pull takes as long as it takes: the server gives up one that stalls.
	err = withClient(cmd, e, 0, func(ctx context.Context, c *client) error {
		r, err := c.PullImage(ctx, req)
		id = r.GetImageRef()
		return err
	})
	return id, err
}

// progressTo shows a pull on w: bars that move on a terminal, a line for each layer that is done elsewhere.
func progressTo(w io.Writer) func([]imagestore.LayerProgress) {
	columns := terminalWidth(w)
	if columns == 0 {
		said := map[digest.Digest]bool{}
		return func(layers []imagestore.LayerProgress) {
			for _, l := range layers {
				if l.Done && !said[l.Digest] {
					said[l.Digest] = true
					fmt.Fprintln(w, layerLine(l))
				}
			}
		}
	}
	lines := 0
	b := bars{start: time.Now(), columns: columns}
	return func(layers []imagestore.LayerProgress) {
		if lines > 0 {
			fmt.Fprintf(w, "\x1b[%dA", lines) // back to the first line
		}
		text := b.draw(layers)
		lines = len(text)
		for _, l := range text {
			fmt.Fprintf(w, "\r%s\x1b[K\n", l)
		}
	}
}

func layerLine(l imagestore.LayerProgress) string {
	what := "pulled"
	if l.Present {
		what = "present"
	}
	return fmt.Sprintf("%.12s %s %s", l.Digest.Encoded(), sizeText(uint64(l.Size)), what)
}

// bars draws the state of a pull.
type bars struct {
	start   time.Time
	columns int
}

// maxBars bounds the lines: those that move are shown first.
const maxBars = 12

func (b bars) draw(layers []imagestore.LayerProgress) []string {
	var out []string
	var got, size int64
	finished := 0
	for _, l := range layers {
		size += l.Size
		if l.Done {
			finished++
			got += l.Size
			continue
		}
		got += l.Received
		if len(out) < maxBars {
			out = append(out, b.line(fmt.Sprintf("%.12s", l.Digest.Encoded()), l.Received, l.Size, ""))
		}
	}
	rate := float64(got) / max(time.Since(b.start).Seconds(), 0.1)
	tail := fmt.Sprintf(" %s/s", sizeText(uint64(rate)))
	return append(out, b.line(fmt.Sprintf("%d/%d layers", finished, len(layers)), got, size, tail))
}

func (b bars) line(name string, got, size int64, tail string) string {
	text := fmt.Sprintf(" %9s of %9s%s", sizeText(uint64(got)), sizeText(uint64(size)), tail)
	width := min(40, b.columns-14-len(text)-3)
	if width < 4 {
		return fmt.Sprintf("%-14s%s", name, text)[:min(b.columns-1, 14+len(text))]
	}
	full := width
	if size > 0 {
		full = int(int64(width) * min(got, size) / size)
	}
	return fmt.Sprintf("%-14s[%s%s]%s", name, strings.Repeat("=", full), strings.Repeat(" ", width-full), text)
}

// terminalWidth is 0 for what is no terminal, ioctl_tty(2).
func terminalWidth(w io.Writer) int {
	f, ok := w.(*os.File)
	if !ok {
		return 0
	}
	ws, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	if ws.Col == 0 {
		return 80
	}
	return int(ws.Col)
}
