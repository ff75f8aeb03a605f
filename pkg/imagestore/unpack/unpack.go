// Package unpack turns one layer's tar stream into a directory.
//
// A layer is unpacked on its own, whatever lies below it in an image, so layers unpack in parallel and are shared. What
// a layer says about the layers below it (whiteouts, opaque directories, hard links to files it doesn't hold,
// directories it enters without describing them) is returned as Marks and, where the kernel lets us, also laid down in
// overlayfs's form: a character device 0/0 and the xattr trusted.overlay.opaque (Documentation/filesystems/overlayfs.rst).
//
// The stream is hostile. Every path is resolved in user space to one without symbolic links and then opened with openat2
// (Linux 5.6) RESOLVE_BENEATH|RESOLVE_NO_SYMLINKS, so nothing outside the directory can be reached even if the
// resolution were wrong. Counts, sizes and lengths are capped by Limits.
package unpack

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// MarkForm says how whiteouts and opaque directories are laid down on disk.
type MarkForm string

const (
	// MarksNone leaves them in Marks only: for stores without the right to make device nodes.
	MarksNone MarkForm = "none"
	// MarksTrusted is overlayfs's own form; it needs CAP_SYS_ADMIN and CAP_MKNOD in the initial user namespace.
	MarksTrusted MarkForm = "trusted"
	// MarksUser is the form of overlayfs mounted with "userxattr" (Linux 5.11), for user namespaces.
	MarksUser MarkForm = "user"
	// MarksFiles are files named as in the tar stream, ".wh.NAME" and ".wh..wh..opq": fuse-overlayfs reads them, and they
	// can be made anywhere, on an overlay too.
	MarksFiles MarkForm = "files"
)

// Limits cap what one layer may hold. A zero field is unlimited.
type Limits struct {
	// Entries counts tar entries and directories made because an entry lies in them.
	Entries int64
	// Bytes is the sum of the files' sizes (holes included) and of the stream itself.
	Bytes int64
	// PathLength and NameLength are in bytes, Depth in components.
	PathLength, NameLength, Depth int
	// XattrBytes caps the extended attributes of one file, names and values.
	XattrBytes int
}

// DefaultLimits are above every image seen in the field and below what fills a node.
func DefaultLimits() Limits {
	return Limits{Entries: 4 << 20, Bytes: 256 << 30, PathLength: 4096, NameLength: 255, Depth: 256, XattrBytes: 128 << 10}
}

// Options steer Apply.
type Options struct {
	Limits Limits
	Marks  MarkForm
	// SkipDevices leaves out block and character devices (no CAP_MKNOD, or a user namespace).
	SkipDevices bool
	// SkipOwner leaves all files to the caller's user (no CAP_CHOWN).
	SkipOwner bool
	// Manifest, if not nil, gets what Check needs. The caller flushes and closes it.
	Manifest io.Writer
}

// Link is a hard link whose target the layer doesn't hold: it lies in a layer below.
type Link struct {
	Path   Path `json:"path"`
	Target Path `json:"target"`
}

// Marks is what the layer says about the layers below it. All paths are relative to the layer's root.
type Marks struct {
	Form      MarkForm `json:"form"`
	Whiteouts []Path   `json:"whiteouts,omitempty"`
	Opaques   []Path   `json:"opaques,omitempty"`
	// Implied are directories that entries lie in and that have no entry of their own; "." is the layer's root.
	Implied []Path `json:"implied,omitempty"`
	Links   []Link `json:"links,omitempty"`
}

// Result tells what was unpacked.
type Result struct {
	// Bytes are allocated bytes (st_blocks), Inodes the number of inodes, the root directory included.
	Bytes, Inodes int64
	Marks         Marks
	// SkippedDevices counts device nodes left out because of Options.SkipDevices.
	SkippedDevices int
}

// Apply unpacks the tar stream r into the empty directory dir, an open directory descriptor that stays the caller's.
// It reads r to its end, without a copy if r is a Peeker. Errors: ErrInvalidArgument for what a layer must not hold, ErrResourceExhausted for what
// exceeds the limits, else the read error or the errno of the file operation. dir is in no defined state after an error.
func Apply(ctx context.Context, r io.Reader, dir int, opt Options) (Result, error) {
	a := &applier{
		opt:       opt,
		manifest:  newManifest(opt.Manifest),
		root:      tree{fd: dir},
		whiteouts: map[string]struct{}{},
		opaques:   map[string]struct{}{},
		implied:   map[string]struct{}{".": {}},
		dirs:      map[string]dirTimes{},
		buf:       make([]byte, 256<<10),
	}
	defer a.root.forget()
	defer a.workers.wait()
	a.in = newStream(r, opt.Limits.Bytes)
	tr := tar.NewReader(a.in)
	for {
		if err := ctx.Err(); err != nil {
			return Result{}, context.Cause(ctx)
		}
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return Result{}, fmt.Errorf("read tar: %w", tarError(err))
		}
		if err := a.entry(hdr, tr); err != nil {
			return Result{}, fmt.Errorf("entry %q: %w", short(hdr.Name), err)
		}
		if err := a.workers.failed(); err != nil {
			return Result{}, err
		}
	}
	// What follows the end marker is padding; the diff ID covers it.
	if _, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{a.in}, a.buf); err != nil {
		return Result{}, fmt.Errorf("read tar padding: %w", err)
	}
	return a.finish()
}

// applier is the state of one Apply.
type applier struct {
	opt Options
	in  *stream
	// workers are waited for before Apply returns.
	workers  workers
	root     tree
	manifest *manifest
	buf      []byte

	whiteouts, opaques, implied map[string]struct{}
	links                       []Link
	dirs                        map[string]dirTimes

	entries, written int64
	bytes, inodes    int64
	skipped          int
	// recount is set once something already counted was replaced.
	recount bool
}

type dirTimes struct {
	explicit bool
	times    [2]unix.Timespec
}

func (a *applier) entry(hdr *tar.Header, r io.Reader) error {
	if err := a.count(); err != nil {
		return err
	}
	switch hdr.Typeflag {
	case tar.TypeXGlobalHeader:
		return nil
	}
	name, err := a.clean(hdr.Name)
	if err != nil {
		return err
	}
	if name == "." {
		return a.rootEntry(hdr)
	}
	dir, base := split(name)
	if strings.HasPrefix(base, whiteoutPrefix) {
		return a.whiteoutEntry(dir, base)
	}
	parent, err := a.enter(dir)
	if err != nil {
		return err
	}
	at := place{dir: parent.path, fd: parent.fd, base: base}
	wasWhiteout, err := a.unwhite(at)
	if err != nil {
		return err
	}
	switch hdr.Typeflag {
	case tar.TypeDir:
		return a.directory(at, hdr, wasWhiteout)
	case tar.TypeReg, '\x00', tar.TypeGNUSparse, tar.TypeCont: // '\x00' is the regular file of old tars
		return a.regular(at, hdr, r)
	case tar.TypeSymlink:
		return a.symlink(at, hdr)
	case tar.TypeLink:
		return a.hardlink(at, hdr)
	case tar.TypeFifo, tar.TypeChar, tar.TypeBlock:
		return a.node(at, hdr)
	}
	return fmt.Errorf("type %q: %w", hdr.Typeflag, errdefs.ErrInvalidArgument)
}

func (a *applier) count() error {
	a.entries++
	if l := a.opt.Limits.Entries; l > 0 && a.entries > l {
		return fmt.Errorf("more than %d entries: %w", l, errdefs.ErrResourceExhausted)
	}
	return nil
}

// tarError gives errors of package tar their kind.
func tarError(err error) error {
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	return err
}

func short(s string) string {
	if len(s) > 200 {
		return s[:200] + "…"
	}
	return s
}
