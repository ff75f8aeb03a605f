package monitor

import (
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
)

// errRepeated is part of the error of a call that may have succeeded before it was repeated.
var errRepeated = errors.New("repeated after cri-monitor had died")

func again(try int, k kind, err error) error {
	switch {
	case try == 0 || err == nil:
		return err
	case k == kindCreate && errdefs.IsNotFound(err):
		// An OCI runtime that the former one had called still runs, or what it has made is taken down: its cgroup goes under
		// the hands of the second. That will be over.
		return fmt.Errorf("%v (%w): %w", err, errRepeated, errdefs.ErrUnavailable)
	}
	return fmt.Errorf("%w (%w)", err, errRepeated)
}
