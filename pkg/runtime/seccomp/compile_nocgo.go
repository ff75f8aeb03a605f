//go:build !cgo

package seccomp

import (
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func compile(*specs.LinuxSeccomp) ([]byte, error) {
	return nil, fmt.Errorf("this binary was built without cgo, so it has no libseccomp: %w", errdefs.ErrNotImplemented)
}
