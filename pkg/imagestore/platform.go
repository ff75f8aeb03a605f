package imagestore

import (
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/seed-9a14075a/cri-server/pkg/imagestore/binfmt"
)

// runs reports whether programs of the platform run here: by the processor, or by an interpreter that binfmt_misc calls. The error
// (ErrFailedPrecondition) says why not.
func (s *Disk) runs(p ocispec.Platform) error {
	if platforms.Only(*s.cfg.Platform).Match(p) || p.OS == "" && p.Architecture == "" {
		return nil
	}
	node := platforms.Format(*s.cfg.Platform)
	if p.OS != s.cfg.Platform.OS {
		return fmt.Errorf("the image is for %s, this node is %s: %w", platforms.Format(p), node, errdefs.ErrFailedPrecondition)
	}
	interpreter, err := binfmt.Interpreter(s.cfg.BinfmtDir, platforms.Normalize(p).Architecture)
	if err != nil {
		return fmt.Errorf("the image is for %s, this node is %s, and %w: %w", platforms.Format(p), node, err, errdefs.ErrFailedPrecondition)
	}
	s.log.Debug("image store: image of a foreign platform", "platform", platforms.Format(p), "interpreter", interpreter)
	return nil
}

// firstForeign is the first of the descriptors whose platform an interpreter runs, nil if there is none.
func (s *Disk) firstForeign(list []ocispec.Descriptor) *ocispec.Descriptor {
	for i, d := range list {
		if usable(d) && d.Platform != nil && s.runs(*d.Platform) == nil {
			return &list[i]
		}
	}
	return nil
}
