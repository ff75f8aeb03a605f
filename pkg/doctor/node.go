package doctor

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

func checkNetwork(h *host) []Finding {
	n := h.cfg.Network
	var list []Finding
	if n.Mode == "embedded" {
		list = append(list, Finding{Code: "network", Severity: OK, Title: "embedded network " + strings.Join(n.PodCIDR, " ") + " on " + n.Bridge})
	} else {
		list = append(list, cniFinding(n.ConfDir, n.BinDirs, n.Mode))
	}
	if _, err := os.Stat(filepath.Join(h.sys, "module/bridge")); err != nil {
		list = append(list, Finding{Code: "bridge", Severity: Note, Title: "the bridge module is not loaded",
			Text: "the kernel loads it when the first bridge is made, unless it lacks it", Fix: "modprobe bridge"})
	}
	list = append(list, h.bridgeNetfilter()...)
	// A netlink socket of netfilter opens only where nfnetlink is there or can be loaded.
	if fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER); err != nil {
		list = append(list, Finding{Code: "nftables", Severity: Warning, Title: "no nftables",
			Text: "host ports and masquerading don't work: " + err.Error(), Fix: "modprobe nf_tables"})
	} else {
		unix.Close(fd)
		list = append(list, Finding{Code: "nftables", Severity: OK, Title: "netfilter netlink"})
	}
	return list
}

// bridgeNetfilter: without it what two pods on one bridge send each other does not pass the host's translation of addresses,
// and answers come from an address that nobody has called.
func (h *host) bridgeNetfilter() []Finding {
	if readInt(filepath.Join(h.proc, "sys/net/bridge/bridge-nf-call-iptables")) == 1 {
		return []Finding{{Code: "bridge-netfilter", Severity: OK, Title: "bridged traffic passes netfilter"}}
	}
	f := Finding{Code: "bridge-netfilter", Severity: Note, Title: "bridged traffic does not pass netfilter",
		Text: "with a network add-on that uses a bridge, a pod that calls a host port or a service gets no answer from a pod on the same node",
		Fix:  "modprobe br_netfilter; sysctl net.bridge.bridge-nf-call-iptables=1"}
	if h.cfg.Network.Mode == "embedded" {
		f.Severity, f.Text = Warning, "a pod that calls a host port or a service gets no answer from a pod on the same node"
	}
	return []Finding{f}
}

func cniFinding(confDir string, binDirs []string, mode string) Finding {
	var confs []string
	for _, pattern := range []string{"*.conflist", "*.conf", "*.json"} {
		m, _ := filepath.Glob(filepath.Join(confDir, pattern)) // the patterns are good
		confs = append(confs, m...)
	}
	if len(confs) == 0 {
		return Finding{Code: "cni-config", Severity: Error, Title: "no CNI configuration in " + confDir,
			Text: "pods with a network of their own wait until there is one",
			Fix:  "install a network add-on, or set network.mode = \"embedded\""}
	}
	slices.Sort(confs)
	f := Finding{Code: "cni-config", Severity: OK, Title: "CNI configuration " + confs[0]}
	plugins := 0
	for _, d := range binDirs {
		e, _ := os.ReadDir(d) // a missing directory holds no plugins
		plugins += len(e)
	}
	if plugins == 0 && mode == "cni" {
		f.Code, f.Severity = "cni-plugins", Error
		f.Title = "no CNI plugins in " + strings.Join(binDirs, ", ")
		f.Text, f.Fix = "no pod can be connected", "install the plugins that "+confs[0]+" names"
	}
	return f
}

func checkForwarding(h *host) []Finding {
	var list []Finding
	for _, s := range []struct{ file, name, fix string }{
		{"sys/net/ipv4/ip_forward", "ip-forward", "sysctl net.ipv4.ip_forward=1"},
		{"sys/net/ipv6/conf/all/forwarding", "ipv6-forward", "sysctl net.ipv6.conf.all.forwarding=1"},
	} {
		switch n := readInt(filepath.Join(h.proc, s.file)); {
		case n == 1:
			list = append(list, Finding{Code: s.name, Severity: OK, Title: s.name + " is on"})
		case n == 0 && s.name == "ip-forward" && h.cfg.Network.Mode != "embedded":
			list = append(list, Finding{Code: s.name, Severity: Warning, Title: "IPv4 is not forwarded",
				Text: "pods don't reach other machines unless the network add-on turns it on", Fix: s.fix})
		case n == 0:
			list = append(list, Finding{Code: s.name, Severity: Note, Title: s.name + " is off", Fix: s.fix})
		}
	}
	return list
}

func checkLimits(h *host) []Finding {
	var list []Finding
	for _, l := range []struct {
		file, code string
		least      int64
		text       string
	}{
		{"sys/fs/inotify/max_user_instances", "inotify-instances", 512, "kubelet, its log readers and pods fail with \"too many open files\""},
		{"sys/fs/inotify/max_user_watches", "inotify-watches", 65536, "kubelet and pods fail with \"no space left on device\" when they watch files"},
		{"sys/kernel/pid_max", "pid-max", 65536, "a full node runs out of process ids"},
		{"sys/fs/file-max", "file-max", 1 << 18, "a full node runs out of open files"},
		{"sys/kernel/keys/maxkeys", "keys", 1000, "containers of one user run out of session keyrings"},
	} {
		n := readInt(filepath.Join(h.proc, l.file))
		if n < 0 || n >= l.least {
			continue
		}
		name := strings.ReplaceAll(strings.TrimPrefix(l.file, "sys/"), "/", ".")
		list = append(list, Finding{Code: l.code, Severity: Warning, Title: fmt.Sprintf("%s is %d", name, n), Text: l.text,
			Fix: fmt.Sprintf("sysctl %s=%d", name, l.least*2)})
	}
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err == nil && r.Max < h.cfg.NofileHard {
		list = append(list, Finding{Code: "nofile", Severity: Note, Title: fmt.Sprintf("our own limit of open files is %d", r.Max),
			Text: fmt.Sprintf("below nofile_hard, %d: where cri-server can't raise it, containers get less", h.cfg.NofileHard),
			Fix:  "LimitNOFILE=infinity in the unit file"})
	}
	return list
}

// Below these shares of free space kubelet evicts pods or nothing can be pulled.
const (
	freeWarning = 10 // percent
	freeError   = 2
)

func checkDisk(h *host) []Finding {
	dir := h.cfg.Root
	var st unix.Statfs_t
	for {
		err := unix.Statfs(dir, &st)
		if err == nil {
			break
		}
		if dir == "/" {
			return []Finding{{Code: "disk", Severity: Error, Title: "root can't be read", Text: err.Error()}}
		}
		dir = filepath.Dir(dir) // root is made by the first start
	}
	list := []Finding{space("disk-space", "bytes", st.Bavail, st.Blocks, h.cfg.Root)}
	if st.Files > 0 { // btrfs counts none
		list = append(list, space("disk-inodes", "inodes", st.Ffree, st.Files, h.cfg.Root))
	}
	if st.Flags&unix.ST_RDONLY != 0 {
		list = append(list, Finding{Code: "disk-readonly", Severity: Error, Title: h.cfg.Root + " is on a read-only file system",
			Fix: "mount it read-write, or set root"})
	}
	if st.Flags&unix.ST_NOSUID != 0 || st.Flags&unix.ST_NODEV != 0 {
		list = append(list, Finding{Code: "disk-nosuid", Severity: Note, Title: h.cfg.Root + " is mounted nosuid or nodev",
			Text: "what images bring as set-user-ID programs may not work in containers", Fix: "remount it with suid and dev"})
	}
	return list
}

func space(code, what string, free, all uint64, root string) Finding {
	percent := uint64(100)
	if all > 0 {
		percent = free * 100 / all
	}
	f := Finding{Code: code, Severity: OK, Title: fmt.Sprintf("%d %% of the %s of %s are free", percent, what, root)}
	if percent < freeWarning {
		f.Severity, f.Text = Warning, "kubelet begins to remove images and evict pods"
		f.Fix = "remove images (cri-server image remove), or give root a larger file system"
	}
	if percent < freeError {
		f.Severity = Error
	}
	return f
}

func checkRuntimes(h *host) []Finding {
	var list []Finding
	for name, r := range h.cfg.Runtimes {
		if r.Engine != "oci" {
			continue
		}
		if st, err := os.Stat(r.Path); err != nil || !st.Mode().IsRegular() || st.Mode()&0o111 == 0 {
			list = append(list, Finding{Code: "runtime-" + name, Severity: Error, Title: fmt.Sprintf("no program at %s", r.Path),
				Text: "pods with the runtime handler " + name + " can't run", Fix: "install it, or correct runtimes." + name + ".path"})
		}
	}
	slices.SortFunc(list, func(a, b Finding) int { return strings.Compare(a.Code, b.Code) })
	return list
}
