package native

import (
	"errors"
	"fmt"
	"sort"
	"strings"

	"golang.org/x/sys/unix"
)

// mask hides each masked path: a file behind the null device, a directory behind an empty tmpfs. Links are followed as
// the container would follow them; what is not there needs no mask.
func (b *builder) mask() error {
	file, dir := masker{fd: b.nullClone}, masker{fd: b.emptyClone}
	for _, p := range b.spec.Linux.MaskedPaths {
		if b.covered(p) {
			continue
		}
		t, err := inRoot(b.root, p, unix.O_PATH, 0)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			continue
		}
		if err == nil {
			err = hide(t, &file, &dir)
			unix.Close(t)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
	}
	return nil
}

// hide covers a file or a directory.
func hide(t int, file, dir *masker) error {
	isdir, err := isDir(t)
	if err != nil {
		return err
	}
	if isdir {
		return dir.cover(t)
	}
	return file.cover(t)
}

// covered tells whether a path came masked, or read-only, with the kit, and nothing was mounted over it since.
func (b *builder) covered(p string) bool { return b.kit != nil && !b.remask && b.kit.covered[p] }

// masker is a mount that hides others.
type masker struct {
	fd   int
	used bool
}

// cover attaches the mount at t the first time, and clones of it after that.
func (m *masker) cover(t int) error {
	if !m.used {
		m.used = true
		return attach(m.fd, t)
	}
	c, err := cloneMount(m.fd, false)
	if err != nil {
		return err
	}
	defer unix.Close(c)
	return attach(c, t)
}

// deviceOnly makes the mount of a host's device fit for a container: the device works, but its inode, which is the host's,
// can't be given another mode, owner or time.
var deviceOnly = attrChange{set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC}

// readOnly makes each read-only path, with everything mounted below it, read-only through a clone of itself.
func (b *builder) readOnly() error {
	for _, p := range b.spec.Linux.ReadonlyPaths {
		if b.covered(p) {
			continue
		}
		t, err := inRoot(b.root, p, unix.O_PATH, 0)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			continue
		}
		if err == nil {
			err = readOnlyClone(t)
			unix.Close(t)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
	}
	return nil
}

func readOnlyClone(t int) error {
	c, err := cloneMount(t, true)
	if err != nil {
		return err
	}
	defer unix.Close(c)
	if err := (attrChange{set: unix.MOUNT_ATTR_RDONLY}).apply(c, true); err != nil {
		return err
	}
	return attach(c, t)
}

// sysctl writes the kernel parameters from a thread in the container's namespaces, which is what decides whose
// parameters they are, through a procfs that the container has no hand in.
func (b *builder) sysctl() error {
	names := make([]string, 0, len(b.spec.Linux.Sysctl))
	for name := range b.spec.Linux.Sysctl {
		names = append(names, name)
	}
	sort.Strings(names) // the same order in every run
	for _, name := range names {
		p := sysctlPath(name)
		if err := b.ns.mayTune(p); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := writeAt(b.engine.proc, "sys/"+p, b.spec.Linux.Sysctl[name]); err != nil {
			return fmt.Errorf("%s: %w", name, classify(err))
		}
	}
	return nil
}

// sysctlPath turns a name into the path below /proc/sys. As in sysctl(8), the first separator decides: after a slash
// dots are part of names, after a dot a slash stands for a dot in a name (net.ipv4.conf.eth0/100.forwarding).
func sysctlPath(name string) string {
	i := strings.IndexAny(name, "./")
	if i < 0 || name[i] == '/' {
		return name
	}
	return strings.NewReplacer(".", "/", "/", ".").Replace(name)
}

// mayTune refuses parameters that are not the container's own.
func (ns *namespaces) mayTune(p string) error {
	var flag uintptr
	switch {
	case strings.Contains("/"+p+"/", "/../"):
	case strings.HasPrefix(p, "net/"):
		flag = unix.CLONE_NEWNET
	case strings.HasPrefix(p, "fs/mqueue/"), ipcSysctl[p]:
		flag = unix.CLONE_NEWIPC
	case p == "kernel/hostname", p == "kernel/domainname":
		flag = unix.CLONE_NEWUTS
	}
	if flag == 0 {
		return invalid("not a parameter of one container")
	}
	if !ns.own(flag) {
		return invalid("the container shares that namespace with the host")
	}
	return nil
}

var ipcSysctl = map[string]bool{"kernel/msgmax": true, "kernel/msgmnb": true, "kernel/msgmni": true, "kernel/sem": true,
	"kernel/shmall": true, "kernel/shmmax": true, "kernel/shmmni": true, "kernel/shm_rmid_forced": true}
