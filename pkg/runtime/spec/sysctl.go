package spec

import (
	"maps"
	"regexp"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

var ipcSysctls = map[string]bool{
	"kernel.msgmax": true, "kernel.msgmnb": true, "kernel.msgmni": true, "kernel.sem": true, "kernel.shmall": true,
	"kernel.shmmax": true, "kernel.shmmni": true, "kernel.shm_rmid_forced": true,
}

// sysctlName: dots separate, a slash stands for a dot inside a part ("net.ipv4.conf.eth0/100.forwarding", as the
// kubelet sends it). Neither can be next to another, so no name climbs out of /proc/sys.
var sysctlName = regexp.MustCompile(`^[A-Za-z0-9_-]+([./][A-Za-z0-9_-]+)*$`)

// sysctls lets through what belongs to a namespace that the pod has for itself; anything else would change the node
// (namespaces(7), CVE-2022-0811).
func sysctls(want map[string]string, ns []specs.LinuxNamespace) (map[string]string, error) {
	own := map[specs.LinuxNamespaceType]bool{}
	for _, n := range ns {
		own[n.Type] = true
	}
	for name, value := range want {
		if strings.ContainsAny(value, "\x00\n") {
			return nil, invalid("sysctl %q: the value holds a line break or a NUL byte", name)
		}
		if !sysctlName.MatchString(name) {
			return nil, invalid("sysctl %q: not a dotted name", name)
		}
		var kind specs.LinuxNamespaceType
		switch {
		case ipcSysctls[name], strings.HasPrefix(name, "fs.mqueue."):
			kind = specs.IPCNamespace
		case strings.HasPrefix(name, "net."):
			kind = specs.NetworkNamespace
		case name == "kernel.domainname":
			kind = specs.UTSNamespace
		case name == "kernel.hostname":
			return nil, invalid("sysctl %q: use the pod's hostname", name)
		default:
			return nil, invalid("sysctl %q belongs to no namespace: it would change the whole node", name)
		}
		if !own[kind] {
			return nil, invalid("sysctl %q: the pod uses the node's %s namespace", name, kind)
		}
	}
	return maps.Clone(want), nil
}
