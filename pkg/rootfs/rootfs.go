// Package rootfs describes a container's root file system and makes mounts from the description.
//
// A Rootfs is plain data: package imagestore produces it, records keep it, an engine mounts it. Open makes a detached
// mount (fsmount(2), open_tree(2)) that lives as long as a file descriptor or the mount namespace it is moved to;
// nothing is mounted on the host for it unless somebody asks for that with MountAt. View lets this process read an
// image's files (/etc/passwd) without any mount on the host.
//
// Layers are handed to overlayfs by file descriptors of detached clones, or by short names from within their directories, so
// that neither the length nor the number of their paths matters and a container's /proc/self/mountinfo names no directory
// of the host. Kernels without that
// (before Linux 6.13 by descriptor, before 6.15 for clones) get the same overlay by mount(2) in a mount namespace of a
// thread that is thrown away; only there the host's paths or descriptor numbers show.
package rootfs

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
)

// Rootfs is either a stack of overlay layers (Lower set) or one directory (Path set).
type Rootfs struct {
	// Lower are the read-only layer directories, topmost first, as overlayfs wants them. Absolute paths.
	Lower []string `json:"lower,omitempty"`
	// Upper and Work are the writable layer and overlayfs's work directory, siblings on one file system.
	// Both empty: the root is read-only.
	Upper string `json:"upper,omitempty"`
	Work  string `json:"work,omitempty"`
	// Options are further overlay options, such as "volatile" or "xino=off".
	Options []string `json:"options,omitempty"`
	// Path is a directory to be used as it is (snapshots without overlayfs).
	Path string `json:"path,omitempty"`
	// Fuse is the program fuse-overlayfs, where the kernel's overlayfs can't stack the layers.
	Fuse string `json:"fuse,omitempty"`
}

// Validate returns errdefs.ErrInvalidArgument for a description that no mount can be made from.
func (r Rootfs) Validate() error {
	bad := func(format string, a ...any) error {
		return fmt.Errorf("rootfs: "+format+": %w", append(a, errdefs.ErrInvalidArgument)...)
	}
	paths := r.Lower
	if r.Fuse != "" {
		paths = append([]string{r.Fuse}, paths...)
	}
	switch {
	case r.Path != "" && (len(r.Lower) > 0 || r.Upper != "" || r.Work != "" || len(r.Options) > 0 || r.Fuse != ""):
		return bad("both a directory and layers")
	case r.Path != "":
		paths = []string{r.Path}
	case len(r.Lower) == 0:
		return bad("no layers")
	case (r.Upper == "") != (r.Work == ""):
		return bad("upper and work go together")
	case r.Upper != "" && filepath.Dir(r.Upper) != filepath.Dir(r.Work):
		return bad("upper %s and work %s are not siblings", r.Upper, r.Work)
	case r.Upper != "":
		paths = append(append([]string{}, paths...), r.Upper, r.Work)
	}
	for _, p := range paths {
		if !filepath.IsAbs(p) || filepath.Clean(p) != p {
			return bad("%q is not a clean absolute path", p)
		}
		if r.Fuse != "" && strings.ContainsAny(p, ",:\\") {
			return bad("%q: fuse-overlayfs takes no comma, colon or backslash in paths", p)
		}
	}
	return nil
}
