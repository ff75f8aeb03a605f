package native

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// classify gives an error of the operating system its errdefs kind, unless it has one.
func classify(err error) error {
	switch {
	case errdefs.IsNotFound(err), errdefs.IsPermissionDenied(err), errdefs.IsInvalidArgument(err):
		return err
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return fmt.Errorf("%w (%w)", err, errdefs.ErrNotFound)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w (%w)", err, errdefs.ErrPermissionDenied)
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENODEV), // ENODEV: an unknown file system
		errors.Is(err, unix.ELOOP), errors.Is(err, unix.ENAMETOOLONG), errors.Is(err, unix.E2BIG):
		return fmt.Errorf("%w (%w)", err, errdefs.ErrInvalidArgument)
	}
	return err
}

func invalid(format string, a ...any) error {
	return fmt.Errorf(format+": %w", append(a, errdefs.ErrInvalidArgument)...)
}
