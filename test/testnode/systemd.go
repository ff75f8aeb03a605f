package testnode

import (
	"os"
	"os/exec"
	"path"
	"strings"
)

// withSystemd: on a node with systemd (hack/node), where the driver is systemd's.
func withSystemd() bool { return os.Getenv("CRI_SERVER_TEST_SYSTEMD") != "" }

// CgroupParent is the parent of a pod's cgroup in the form of the node's driver: base, or a cgroup called name below it.
func CgroupParent(base, name string) string {
	if !withSystemd() {
		return path.Join(base, name)
	}
	slice := strings.ReplaceAll(strings.TrimPrefix(base, "/"), "-", "")
	if name == "" {
		return "/" + slice + ".slice"
	}
	return "/" + slice + ".slice/" + slice + "-" + strings.ReplaceAll(name, "-", "") + ".slice"
}

// stopSlices has systemd forget a slice and those in it.
func stopSlices(parent string) error {
	if !withSystemd() || !strings.HasSuffix(parent, ".slice") {
		return nil
	}
	return exec.Command("systemctl", "stop", path.Base(parent)).Run()
}
