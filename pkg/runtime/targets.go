package runtime

import (
	"os"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/seed-9a14075a/cri-server/pkg/imagestore"
)

// commonTargets are the mount points, directories or files, that nearly every container has and that are the same in all:
// what the runtime mounts itself, and what kubelet adds. Any others are a pod's own, and are made in its writable layer.
var commonTargets = map[string]bool{
	"/proc": true, "/sys": true, "/dev": true,
	"/etc/hostname": false, "/etc/hosts": false, "/etc/resolv.conf": false,
	serviceAccount: true,
}

// serviceAccount is where kubelet mounts a pod's token. Images have a link at /var/run, or nothing.
const serviceAccount = "/var/run/secrets/kubernetes.io/serviceaccount"

// mountTargets lists the common mount points of a container which may be shared with others: those over which something will
// be mounted for sure if they can be seen, so that they never show. run is the varRun of its image.
func mountTargets(sp *specs.Spec, run string) []imagestore.Target {
	if slices.ContainsFunc(sp.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.UserNamespace }) {
		return nil // the ids would have to be mapped, which costs a mount
	}
	var targets []imagestore.Target
	for _, m := range sp.Mounts {
		dir, common := commonTargets[m.Destination]
		if !common || m.Type == "bind" && !isKind(m.Source, dir) || m.Type != "bind" && !dir {
			continue
		}
		at := m.Destination
		if at == serviceAccount {
			at = behindRun(at, run)
		}
		if at == "" || covered(sp.Mounts, m.Destination) || covered(sp.Mounts, at) {
			continue
		}
		targets = append(targets, imagestore.Target{Path: at, Dir: dir})
	}
	return targets
}

func isKind(name string, dir bool) bool {
	st, err := os.Stat(name)
	return err == nil && st.IsDir() == dir
}

// covered tells whether p lies in what is mounted, and so is none of the root's own.
func covered(mounts []specs.Mount, p string) bool {
	return slices.ContainsFunc(mounts, func(m specs.Mount) bool { return strings.HasPrefix(p, path.Clean(m.Destination)+"/") })
}

// varRun is what /var/run of an image is: itself, the link to /run that it often is, or "" where it leads elsewhere.
func varRun(image *os.Root) string {
	to, err := image.Readlink("var/run")
	if err != nil {
		return "/var/run" // No link. Where /var is one, nothing that is laid below the image is seen there.
	}
	if st, err := image.Lstat("var"); err != nil || !st.IsDir() {
		return ""
	}
	if !path.IsAbs(to) {
		to = path.Join("/var", to)
	}
	if path.Clean(to) != "/run" {
		return ""
	}
	return "/run"
}

// behindRun is where a path below /var/run is in an image with that varRun; "" where that leads elsewhere.
func behindRun(p, run string) string {
	if run == "" {
		return ""
	}
	return run + strings.TrimPrefix(p, "/var/run")
}
