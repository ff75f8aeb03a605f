package sandbox

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/internal/smallfile"
	"github.com/seed-9a14075a/cri-server/pkg/faultpoint"
)

const (
	defaultShmSize = 64 << 20
	maxHostFile    = 1 << 20 // of /etc/hosts and /etc/resolv.conf that is copied
)

// Files are the pod's files on the host that containers get bind mounted.
type Files struct {
	Dir        string `json:"dir"` // holds all of them, private to the sandbox
	Hostname   string `json:"hostname,omitempty"`
	Hosts      string `json:"hosts,omitempty"`
	ResolvConf string `json:"resolv_conf,omitempty"`
	// Shm is the pod's /dev/shm, a tmpfs mount of the host; "" when the pod uses the host's ipc namespace.
	Shm string `json:"shm,omitempty"`
}

// hostname is the pod's host name: the configured one, else the node's, which a new uts namespace begins with
// (uts_namespaces(7)).
func hostname(c *runtimeapi.PodSandboxConfig) (string, error) {
	if c.GetHostname() != "" {
		return c.GetHostname(), nil
	}
	return os.Hostname()
}

// makeFiles writes the pod's files below dir and mounts its shm.
func (s *Sandboxes) makeFiles(dir string, c *runtimeapi.PodSandboxConfig) (Files, error) {
	f := Files{Dir: dir}
	// Containers may run as any user and reach these files by bind mount only; the host's users need not.
	err := os.Mkdir(dir, 0o711)
	if errors.Is(err, os.ErrNotExist) {
		err = os.MkdirAll(dir, 0o711)
	}
	if err != nil && !errors.Is(err, os.ErrExist) {
		return f, err
	}
	name, err := hostname(c)
	if err != nil {
		return f, err
	}
	f.Hostname = filepath.Join(dir, "hostname")
	if err := smallfile.Write(f.Hostname, []byte(name+"\n"), 0o644); err != nil {
		return f, err
	}
	if err := faultpoint.Hit("sandbox.files.hostname"); err != nil {
		return f, err
	}
	f.Hosts = filepath.Join(dir, "hosts")
	if err := copyHostFile("/etc/hosts", f.Hosts); err != nil {
		return f, err
	}
	f.ResolvConf = filepath.Join(dir, "resolv.conf")
	if err := writeResolvConf(f.ResolvConf, c.GetDnsConfig()); err != nil {
		return f, err
	}
	if uid, gid, mapped := podRoot(c); mapped { // not by id-mapped mounts: a tmpfs, which /run mostly is, takes those from Linux 6.3 on only
		for _, file := range []string{f.Hostname, f.Hosts, f.ResolvConf} {
			if err := os.Lchown(file, uid, gid); err != nil {
				return f, err
			}
		}
	}
	if log := c.GetLogDirectory(); log != "" {
		if err := os.MkdirAll(log, 0o755); err != nil {
			return f, fmt.Errorf("log directory: %w", err)
		}
	}
	if namespaceOptions(c).GetIpc() != runtimeapi.NamespaceMode_NODE {
		f.Shm = filepath.Join(dir, "shm")
		if err := s.mountShm(f.Shm, c); err != nil {
			return f, fmt.Errorf("shm: %w", err)
		}
	}
	return f, nil
}

// podRoot is the node's user and group that are root in the pod's own user namespace, if it has one: they own its files.
func podRoot(c *runtimeapi.PodSandboxConfig) (uid, gid int, mapped bool) {
	u := namespaceOptions(c).GetUsernsOptions()
	if !ownUserNamespace(c) || len(u.GetUids()) == 0 || len(u.GetGids()) == 0 {
		return 0, 0, false
	}
	return int(u.Uids[0].HostId), int(u.Gids[0].HostId), true
}

func (s *Sandboxes) mountShm(dir string, c *runtimeapi.PodSandboxConfig) error {
	if err := os.Mkdir(dir, 0o711); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	size := s.cfg.ShmSize
	if size <= 0 {
		size = defaultShmSize
	}
	data := "mode=1777,size=" + strconv.FormatInt(size, 10)
	if uid, gid, mapped := podRoot(c); mapped {
		data += fmt.Sprintf(",uid=%d,gid=%d", uid, gid)
	}
	if err := faultpoint.Hit("sandbox.files.shm"); err != nil {
		return err
	}
	return unix.Mount("shm", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, data)
}

// writeResolvConf writes exactly what the CRI's DNSConfig says; without any, the host's file is copied.
func writeResolvConf(path string, dns *runtimeapi.DNSConfig) error {
	if len(dns.GetServers())+len(dns.GetSearches())+len(dns.GetOptions()) == 0 {
		return copyHostFile("/etc/resolv.conf", path)
	}
	var b strings.Builder
	if len(dns.Searches) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(dns.Searches, " "))
	}
	for _, server := range dns.Servers {
		fmt.Fprintf(&b, "nameserver %s\n", server)
	}
	if len(dns.Options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(dns.Options, " "))
	}
	return smallfile.Write(path, []byte(b.String()), 0o644)
}

// copyHostFile copies a file of the node; one that is not there counts as empty.
func copyHostFile(from, to string) error {
	b, err := readHostFile(from)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return smallfile.Write(to, b, 0o644)
}

func readHostFile(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // a fifo must not hold us up
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file: %w", path, errdefs.ErrFailedPrecondition)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxHostFile+1))
	if err == nil && len(b) > maxHostFile {
		err = fmt.Errorf("%s is larger than %d bytes: %w", path, maxHostFile, errdefs.ErrFailedPrecondition)
	}
	return b, err
}

// removeFiles unmounts and removes what makeFiles made. Idempotent.
func removeFiles(f Files) error {
	if f.Dir == "" {
		return nil
	}
	// MNT_DETACH: a container that dies this moment may still hold the tmpfs. UMOUNT_NOFOLLOW: see umount(2).
	err := unix.Unmount(filepath.Join(f.Dir, "shm"), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && err != unix.EINVAL && err != unix.ENOENT {
		return fmt.Errorf("unmount %s/shm: %w", f.Dir, err)
	}
	if err := faultpoint.Hit("sandbox.files.unmounted"); err != nil {
		return err
	}
	// By name: nothing else is there, as a rule, and listing it all the same would be most of the work.
	for _, file := range []string{"hostname", "hosts", "resolv.conf"} {
		_ = unix.Unlink(filepath.Join(f.Dir, file))
	}
	_ = unix.Rmdir(filepath.Join(f.Dir, "shm"))
	if err := unix.Rmdir(f.Dir); err == nil || err == unix.ENOENT {
		return nil
	}
	return os.RemoveAll(f.Dir)
}
