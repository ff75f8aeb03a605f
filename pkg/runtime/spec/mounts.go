package spec

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/selinux/go-selinux/label"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"
)

// setMounts: the runtime's own mounts first, then the pod's files, then the CRI mounts, these by depth so that none
// hides another. A CRI mount takes the place of the default one with the same path.
func setMounts(in *Input, s *specs.Spec) error {
	cri := slices.Clone(in.Container.GetMounts())
	taken := map[string]bool{}
	for _, m := range cri {
		p := m.GetContainerPath()
		if p == "" || strings.ContainsRune(p, 0) {
			return invalid("container_path %q is no path", p)
		}
		if p = path.Join("/", p); p == "/" {
			return invalid("container_path %q is the container's root", m.GetContainerPath())
		}
		taken[p] = true
	}
	for _, m := range defaultMounts(in) {
		// Whoever mounts a /dev of their own wants all of it.
		if taken[m.Destination] || taken["/dev"] && strings.HasPrefix(m.Destination, "/dev/") {
			continue
		}
		s.Mounts = append(s.Mounts, m)
	}
	var own []*runtimeapi.Mount
	for _, m := range podFiles(in) {
		if !taken[m.GetContainerPath()] && !(taken["/dev"] && m.GetContainerPath() == "/dev/shm") {
			own = append(own, m)
		}
	}
	all := append(own, cri...)
	depth := func(m *runtimeapi.Mount) int { return strings.Count(path.Join("/", m.GetContainerPath()), "/") }
	slices.SortStableFunc(all, func(a, b *runtimeapi.Mount) int { return depth(a) - depth(b) })
	for _, m := range all {
		bind, err := bindMount(in, s, m)
		if err != nil {
			return fmt.Errorf("mount %s: %w", m.GetContainerPath(), err)
		}
		s.Mounts = append(s.Mounts, *bind)
	}
	if !in.privileged() {
		s.Linux.MaskedPaths = slices.Clone(in.security().GetMaskedPaths())
		s.Linux.ReadonlyPaths = slices.Clone(in.security().GetReadonlyPaths())
	}
	return nil
}

// defaultMounts are the file systems of every container (config-linux.md, default filesystems) without /dev/shm,
// which is the pod's. mqueue belongs to the IPC namespace.
func defaultMounts(in *Input) []specs.Mount {
	mode := "ro"
	if in.privileged() {
		mode = "rw"
	}
	sys := specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", mode}}
	pod := in.Pod.GetLinux().GetSecurityContext().GetNamespaceOptions()
	if pod.GetNetwork() == runtimeapi.NamespaceMode_NODE && pod.GetUsernsOptions().GetMode() == runtimeapi.NamespaceMode_POD && pod.GetUsernsOptions() != nil {
		// A user namespace may mount sysfs only for a net namespace it owns (EPERM else).
		sys = specs.Mount{Destination: "/sys", Type: "bind", Source: "/sys", Options: []string{"rbind", "rro", "nosuid", "noexec", "nodev"}}
	}
	pts := specs.Mount{Destination: "/dev/pts", Type: "devpts", Source: "devpts",
		Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}}
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		pts,
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		sys,
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", mode}},
	}
}

func podFiles(in *Input) []*runtimeapi.Mount {
	var files []*runtimeapi.Mount
	for _, f := range []struct{ path, host string }{
		{"/etc/hostname", in.Hostname}, {"/etc/hosts", in.Hosts}, {"/etc/resolv.conf", in.ResolvConf},
	} {
		if f.host != "" {
			files = append(files, &runtimeapi.Mount{ContainerPath: f.path, HostPath: f.host, SelinuxRelabel: true,
				Readonly: in.security().GetReadonlyRootfs()})
		}
	}
	// No id mapping for these: tmpfs takes it from Linux 6.3 on only, and they belong to the pod's root already.
	shm := in.Shm
	if in.Pod.GetLinux().GetSecurityContext().GetNamespaceOptions().GetIpc() == runtimeapi.NamespaceMode_NODE {
		shm = "/dev/shm"
	}
	if shm != "" {
		files = append(files, &runtimeapi.Mount{ContainerPath: "/dev/shm", HostPath: shm, SelinuxRelabel: shm != "/dev/shm"})
	}
	return files
}

func bindMount(in *Input, s *specs.Spec, m *runtimeapi.Mount) (*specs.Mount, error) {
	src, err := source(in, s, m)
	if err != nil {
		return nil, err
	}
	propagation, err := propagation(s, m, src)
	if err != nil {
		return nil, err
	}
	access := "rw"
	switch {
	case m.GetImage() != nil:
		access = "ro"
		if in.Host.RecursiveReadOnly {
			access = "rro"
		}
	case m.GetRecursiveReadOnly():
		if err := checkRRO(in.Host, m); err != nil {
			return nil, err
		}
		access = "rro"
	case m.GetReadonly():
		access = "ro"
	}
	opts := []string{"rbind", propagation, access}
	for _, o := range m.GetMountOptions() {
		if o != "noexec" && o != "nodev" && o != "nosuid" {
			return nil, invalid("mount option %q: only noexec, nodev and nosuid can be given", o)
		}
		opts = append(opts, o)
	}
	uids, gids := mappings(m.GetUidMappings()), mappings(m.GetGidMappings())
	if m.GetImage() != nil {
		uids, gids = nil, nil // ImageMount has seen to it, and to the label
	} else if (len(uids) > 0 || len(gids) > 0) && !in.Host.IDMappedMounts {
		return nil, fmt.Errorf("id-mapped mounts need Linux 5.12: %w", errdefs.ErrNotImplemented)
	}
	if m.GetSelinuxRelabel() && m.GetImage() == nil && s.Linux.MountLabel != "" {
		if err := label.Relabel(src, s.Linux.MountLabel, false); err != nil && !errors.Is(err, unix.ENOTSUP) {
			return nil, fmt.Errorf("relabel %s: %w", src, err)
		}
	}
	return &specs.Mount{Destination: path.Join("/", m.GetContainerPath()), Type: "bind", Source: src, Options: opts,
		UIDMappings: uids, GIDMappings: gids}, nil
}

func checkRRO(h *Host, m *runtimeapi.Mount) error {
	switch {
	case !m.GetReadonly():
		return invalid("recursive_read_only needs readonly (host path %q)", m.GetHostPath())
	case m.GetPropagation() != runtimeapi.MountPropagation_PROPAGATION_PRIVATE:
		return invalid("recursive_read_only needs private propagation, not %s (host path %q)", m.GetPropagation(), m.GetHostPath())
	case !h.RecursiveReadOnly:
		return fmt.Errorf("%w: recursive_read_only needs Linux 5.12 (host path %q): %w", crierrors.ErrRROUnsupported, m.GetHostPath(), errdefs.ErrNotImplemented)
	}
	return nil
}

// source returns the path to bind, with all symlinks followed: what is checked here is what is mounted.
func source(in *Input, s *specs.Spec, m *runtimeapi.Mount) (string, error) {
	if m.GetImage() != nil {
		return imageSource(in, s, m)
	}
	// Without an image, image_sub_path means nothing; kubelet sets it to the subPath of any volume.
	host := m.GetHostPath()
	if !filepath.IsAbs(host) || strings.ContainsRune(host, 0) {
		return "", invalid("host path %q is not absolute", host)
	}
	src, err := resolve(host)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("host path %q does not exist: %w", host, errdefs.ErrNotFound)
	}
	if err != nil {
		return "", fmt.Errorf("host path %q: %w", host, err)
	}
	return src, nil
}

// resolve is filepath.EvalSymlinks by the kernel (proc(5), /proc/pid/fd): that looks at each part of the path, and paths of
// kubelet's volumes have a dozen.
func resolve(path string) (string, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return filepath.EvalSymlinks(path) // whose message is better
	}
	defer unix.Close(fd)
	if to, ok := pathOf(fd, path); ok {
		return to, nil
	}
	return filepath.EvalSymlinks(path)
}

// pathOf is where the file is that was opened by a path. Not ok: nowhere that has a name, or not there any more. Of what is in a
// mount that has been detached since (umount2(2), MNT_DETACH) the kernel tells its path from that mount's root, which is another
// file's.
func pathOf(fd int, path string) (string, bool) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlink("/proc/self/fd/"+strconv.Itoa(fd), buf)
	if err != nil || n == len(buf) {
		return "", false
	}
	to := string(buf[:n])
	if to == path { // no link was on the way
		return to, true
	}
	var file, there unix.Stat_t
	return to, filepath.IsAbs(to) && unix.Fstat(fd, &file) == nil && unix.Lstat(to, &there) == nil &&
		file.Dev == there.Dev && file.Ino == there.Ino
}

// imageSource finds image_sub_path inside the image: symlinks of the image are followed inside its root, a path that
// names something outside is refused (KEP-4639).
func imageSource(in *Input, s *specs.Spec, m *runtimeapi.Mount) (string, error) {
	fail := func(err error) (string, error) {
		return "", fmt.Errorf("%w: image %s: %w", crierrors.ErrImageVolumeMountFailed, m.GetImage().GetImage(), err)
	}
	if m.GetHostPath() != "" {
		return fail(invalid("host path %q and image are both set", m.GetHostPath()))
	}
	if in.ImageMount == nil {
		return fail(fmt.Errorf("image mounts: %w", errdefs.ErrNotImplemented))
	}
	root, err := in.ImageMount(m, s.Linux.MountLabel)
	if err != nil {
		return fail(err)
	}
	sub := m.GetImageSubPath()
	if sub == "" {
		return root, nil
	}
	if !filepath.IsLocal(sub) {
		return fail(invalid("image_sub_path %q leaves the image", sub))
	}
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail(&os.PathError{Op: "open", Path: root, Err: err})
	}
	defer unix.Close(dir)
	// openat2(2), Linux 5.6.
	fd, err := unix.Openat2(dir, sub, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return fail(fmt.Errorf("image_sub_path %q is not in the image: %w", sub, errdefs.ErrNotFound))
	}
	if err != nil {
		return fail(&os.PathError{Op: "openat2", Path: sub, Err: err})
	}
	defer unix.Close(fd)
	src, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return fail(err)
	}
	return src, nil
}
