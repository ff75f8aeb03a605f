package runtime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/pkg/rootfs"
)

// volumes mounts the images that a container's mounts name (KEP-4639) where its engine can bind them from. The mounts
// are needed only while the container is being built, which clones them into its own mount namespace; what keeps an
// image for as long as the container exists is a snapshot per mount.
type volumes struct {
	c    *Containers
	ctx  context.Context // of the container's creation
	pod  *Pod
	ctr  *Container
	dir  string
	used []string // mount points
}

// volumesDir holds a directory of mount points for each container that is being built.
const volumesDir = "volumes"

func (c *Containers) volumes(ctx context.Context, pod *Pod, ctr *Container) *volumes {
	return &volumes{c: c, ctx: ctx, pod: pod, ctr: ctr, dir: filepath.Join(c.cfg.StateDir, volumesDir, ctr.ID)}
}

// volumeKey is the snapshot of the i-th mount of a container.
func volumeKey(id string, i int) string { return fmt.Sprintf("%s.%d", id, i) }

// mount makes the root of a mount's image visible, read-only, and returns where. With an SELinux label all of it has
// that label. It is spec.Input's ImageMount.
func (v *volumes) mount(m *runtimeapi.Mount, label string) (string, error) {
	index := 0
	for i, other := range v.ctr.Config.GetMounts() {
		if other == m {
			index = i
		}
	}
	image, err := v.c.cfg.Images.Get(m.GetImage().GetImage())
	if err != nil {
		return "", err
	}
	root, err := v.c.cfg.Images.Snapshot(v.ctx, volumeKey(v.ctr.ID, index), image.ID)
	if err != nil {
		return "", err
	}
	o := rootfs.Options{ReadOnly: true, Label: label}
	if err := v.mapIDs(m, &o); err != nil {
		return "", err
	}
	if o.UserNS != nil {
		defer o.UserNS.Close()
	}
	target := filepath.Join(v.dir, fmt.Sprint(index))
	if err := os.MkdirAll(target, 0o700); err != nil {
		return "", err
	}
	if err := root.MountAt(target, o); err != nil {
		return "", err
	}
	v.used = append(v.used, target)
	return target, nil
}

// mapIDs has the image's files belong to the ids of the pod's user namespace. An overlay can't be id-mapped as a whole
// (Linux 6.18), its layers can.
func (v *volumes) mapIDs(m *runtimeapi.Mount, o *rootfs.Options) error {
	uids, gids := m.GetUidMappings(), m.GetGidMappings()
	if len(uids) == 0 && len(gids) == 0 {
		return nil
	}
	if !v.pod.UserNamespace || len(uids) == 0 || len(gids) == 0 {
		return fmt.Errorf("uidMappings and gidMappings need a pod with a user namespace, and each other: %w", errdefs.ErrInvalidArgument)
	}
	o.RootUID, o.RootGID = uids[0].GetHostId(), gids[0].GetHostId()
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", v.pod.Pid))
	if err != nil {
		return fmt.Errorf("the pod's user namespace: %w", err)
	}
	o.UserNS = ns
	return nil
}

// release takes the mounts away, once the container has its own or will have none.
func (v *volumes) release() error {
	var errs []error
	for _, target := range v.used {
		if err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, &os.PathError{Op: "unmount", Path: target, Err: err})
		}
		errs = append(errs, ignoreMissing(unix.Rmdir(target)))
	}
	v.used = nil
	return errors.Join(append(errs, ignoreMissing(unix.Rmdir(v.dir)))...)
}

// ignoreMissing makes removing what is not there no error.
func ignoreMissing(err error) error {
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// removeVolumes gives up what the container keeps of other images. Idempotent.
func (c *Containers) removeVolumes(ctx context.Context, ctr *Container) error {
	for i, m := range ctr.Config.GetMounts() {
		if m.GetImage() == nil {
			continue
		}
		if err := c.cfg.Images.RemoveSnapshot(ctx, volumeKey(ctr.ID, i)); err != nil {
			return fmt.Errorf("image volume %s: %w", m.GetContainerPath(), err)
		}
	}
	return nil
}

// StrayMounts lists the directories with the mounts of containers that were being built when a server was killed.
func (c *Containers) StrayMounts() (stray []string, _ error) {
	dirs, err := filepath.Glob(filepath.Join(c.cfg.StateDir, volumesDir, "*"))
	for _, dir := range dirs {
		if id := filepath.Base(dir); !c.building(id) {
			stray = append(stray, dir)
		}
	}
	return stray, err
}

// building tells whether a container of that id is being created.
func (c *Containers) building(id string) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	ctr := c.byID[id]
	return ctr != nil && ctr.State == Creating
}

// RemoveStrayMounts unmounts what is in one of them.
func (c *Containers) RemoveStrayMounts(dir string) error {
	targets, err := filepath.Glob(filepath.Join(dir, "*"))
	v := volumes{dir: dir, used: targets}
	return errors.Join(err, v.release())
}

// OwnsSnapshot tells whether a snapshot of the image store is a container's: its writable layer, or of one of its image
// volumes.
func (c *Containers) OwnsSnapshot(key string) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.byID[key] != nil {
		return true
	}
	ext := filepath.Ext(key)
	return ext != "" && c.byID[key[:len(key)-len(ext)]] != nil
}
