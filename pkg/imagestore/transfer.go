package imagestore

import (
	"context"
	"fmt"
	"io"

	"github.com/containerd/errdefs"
)

func (s *Disk) Import(ctx context.Context, r io.Reader) ([]*Image, error) {
	return nil, fmt.Errorf("import: %w", errdefs.ErrNotImplemented)
}

func (s *Disk) Export(ctx context.Context, w io.Writer, refs ...string) error {
	return fmt.Errorf("export: %w", errdefs.ErrNotImplemented)
}
