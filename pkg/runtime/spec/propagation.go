package spec

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// propagation returns the mount option, and raises the root's own propagation to what the mount needs: mounts pass
// through the root on their way. That the host's mount is shared is checked here, because the kernel takes the flag
// on a private one without an error and no mount would ever arrive.
func propagation(s *specs.Spec, m *runtimeapi.Mount, src string) (string, error) {
	switch p := m.GetPropagation(); p {
	case runtimeapi.MountPropagation_PROPAGATION_PRIVATE:
		return "rprivate", nil
	case runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
		if err := checkShared(src, "shared:", "master:"); err != nil {
			return "", err
		}
		if s.Linux.RootfsPropagation == "" {
			s.Linux.RootfsPropagation = "rslave"
		}
		return "rslave", nil
	case runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		if err := checkShared(src, "shared:"); err != nil {
			return "", err
		}
		s.Linux.RootfsPropagation = "rshared"
		return "rshared", nil
	default:
		return "", invalid("unknown propagation %d", p)
	}
}

// checkShared reads the optional fields of the mount that src lies on (proc_pid_mountinfo(5)).
func checkShared(src string, want ...string) error {
	mounts, err := mountinfo.GetMounts(mountinfo.ParentsFilter(src))
	if err != nil {
		return fmt.Errorf("read mountinfo: %w", err)
	}
	var on *mountinfo.Info
	for _, m := range mounts { // of two on one path the later one is on top
		if on == nil || len(m.Mountpoint) >= len(on.Mountpoint) {
			on = m
		}
	}
	if on == nil {
		return fmt.Errorf("no mount found for host path %q: %w", src, errdefs.ErrFailedPrecondition)
	}
	for f := range strings.FieldsSeq(on.Optional) {
		for _, w := range want {
			if strings.HasPrefix(f, w) {
				return nil
			}
		}
	}
	kind := strings.TrimSuffix(want[0], ":")
	if len(want) > 1 {
		kind += " or slave"
	}
	return fmt.Errorf("host path %q is on the mount %q, which is not %s, so its propagation would not work (mount --make-rshared %s): %w",
		src, on.Mountpoint, kind, on.Mountpoint, errdefs.ErrFailedPrecondition)
}
