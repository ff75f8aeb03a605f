package native

import (
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

var cloneFlag = map[specs.LinuxNamespaceType]uintptr{
	specs.MountNamespace:   unix.CLONE_NEWNS,
	specs.PIDNamespace:     unix.CLONE_NEWPID,
	specs.IPCNamespace:     unix.CLONE_NEWIPC,
	specs.UTSNamespace:     unix.CLONE_NEWUTS,
	specs.NetworkNamespace: unix.CLONE_NEWNET,
	specs.CgroupNamespace:  unix.CLONE_NEWCGROUP,
	specs.UserNamespace:    unix.CLONE_NEWUSER,
	specs.TimeNamespace:    unix.CLONE_NEWTIME,
}

// namespaces is how a container comes to each of its namespaces. A type that is neither made nor joined is the host's.
type namespaces struct {
	made   uintptr              // CLONE_NEW* of the new ones
	joined map[uintptr]*os.File // by CLONE_NEW*
}

// openNamespaces opens what the spec joins by path. The caller closes it.
func openNamespaces(list []specs.LinuxNamespace) (_ *namespaces, err error) {
	ns := &namespaces{joined: map[uintptr]*os.File{}}
	defer func() {
		if err != nil {
			ns.close()
		}
	}()
	for _, n := range list {
		flag, ok := cloneFlag[n.Type]
		if !ok {
			return nil, fmt.Errorf("linux.namespaces: unknown type %q: %w", n.Type, errdefs.ErrInvalidArgument)
		}
		if ns.own(flag) {
			return nil, fmt.Errorf("linux.namespaces: %s twice: %w", n.Type, errdefs.ErrInvalidArgument)
		}
		if n.Path == "" {
			ns.made |= flag
			continue
		}
		f, err := os.OpenFile(n.Path, unix.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			return nil, fmt.Errorf("linux.namespaces: %s: %w", n.Type, classify(err))
		}
		typ, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
		if err != nil || uintptr(typ) != flag {
			f.Close()
			return nil, fmt.Errorf("linux.namespaces: %s is not a %s namespace: %w", n.Path, n.Type, errdefs.ErrInvalidArgument)
		}
		if flag == unix.CLONE_NEWUSER && sameAsOurs(f) {
			f.Close() // joining one's own user namespace is EINVAL, and needless
			continue
		}
		ns.joined[flag] = f
	}
	if !ns.own(unix.CLONE_NEWNS) {
		return nil, fmt.Errorf("linux.namespaces: a container without a mount namespace of its own: %w", errdefs.ErrNotImplemented)
	}
	return ns, nil
}

// sameAsOurs reports whether f is this process's user namespace.
func sameAsOurs(f *os.File) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Stat("/proc/self/ns/user")
	return err == nil && os.SameFile(a, b)
}

// own reports whether the container has that namespace apart from the host, new or joined.
func (ns *namespaces) own(flag uintptr) bool { return ns.made&flag != 0 || ns.joined[flag] != nil }

// all are the flags of every namespace that is not the host's, for setns with a pidfd.
func (ns *namespaces) all() uintptr {
	flags := ns.made
	for f := range ns.joined {
		flags |= f
	}
	return flags
}

func (ns *namespaces) close() {
	for _, f := range ns.joined {
		f.Close()
	}
}

// idMap translates ids of the container's user namespace to the host's. The zero value is the identity.
type idMap struct {
	uids, gids []specs.LinuxIDMapping
}

func (m idMap) uid(id uint32) (uint32, error) { return toHost(m.uids, id) }
func (m idMap) gid(id uint32) (uint32, error) { return toHost(m.gids, id) }

func toHost(maps []specs.LinuxIDMapping, id uint32) (uint32, error) {
	if maps == nil {
		return id, nil
	}
	for _, r := range maps {
		if id >= r.ContainerID && id-r.ContainerID < r.Size {
			return r.HostID + (id - r.ContainerID), nil
		}
	}
	return 0, fmt.Errorf("id %d is not mapped in the user namespace: %w", id, errdefs.ErrInvalidArgument)
}

// formatMap is the text of /proc/PID/uid_map.
func formatMap(maps []specs.LinuxIDMapping) string {
	var b []byte
	for _, r := range maps {
		b = fmt.Appendf(b, "%d %d %d\n", r.ContainerID, r.HostID, r.Size)
	}
	return string(b)
}

// parseMap reads the text of /proc/PID/uid_map.
func parseMap(b []byte) ([]specs.LinuxIDMapping, error) {
	maps := []specs.LinuxIDMapping{}
	for len(b) > 0 {
		var r specs.LinuxIDMapping
		line := b
		for i, c := range b {
			if c == '\n' {
				line = b[:i]
				break
			}
		}
		b = b[min(len(line)+1, len(b)):]
		if _, err := fmt.Sscan(string(line), &r.ContainerID, &r.HostID, &r.Size); err != nil {
			return nil, fmt.Errorf("id map: %w", err)
		}
		maps = append(maps, r)
	}
	return maps, nil
}
