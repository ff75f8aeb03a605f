package main

import (
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
)

// target is a runtime in one of its configurations.
type target struct {
	name     string
	handler  string // the CRI's runtime handler
	network  string // for people
	sync     string // what is on disk when a call returns, for people
	slow     bool   // gets the smaller sizes of growth and lists
	profiled bool   // profile tells where its pod starts' CPU goes
	idle     bool   // is left alone with many containers, which takes a minute
	monitor  string // the name of a process that is one per node, beside the daemon
	version  func(o options) string
	daemon   func(d *daemon) (*exec.Cmd, error) // writes the configuration too
}

const (
	plugins   = "bridge + portmap by plugin binaries"
	inProcess = "the same conflist, in process"
	embedded  = "embedded, in process"

	syncOurs  = "records appended to files, not synced; layers of images synced"
	syncBolt  = "every change of its database synced (bbolt); layers not (default)"
	syncFiles = "state files by rename, synced where its libraries do; layers not (default)"
)

var targets = []target{
	{name: "cri-server", network: plugins, handler: "native", sync: syncOurs, monitor: "cri-monitor", version: ours, daemon: criServer("cni")},
	{name: "cri-server (default CNI)", idle: true, profiled: true, network: inProcess, handler: "native", sync: syncOurs, monitor: "cri-monitor", version: ours, daemon: criServer("auto")},
	{name: "cri-server (embedded)", network: embedded, handler: "native", sync: syncOurs, monitor: "cri-monitor", version: ours, daemon: criServer("embedded")},
	{name: "cri-server + crun", network: plugins, handler: "crun", sync: syncOurs, slow: true, monitor: "cri-monitor", version: ours, daemon: criServer("cni")},
	{name: "cri-server + runc", network: plugins, handler: "runc", sync: syncOurs, slow: true, monitor: "cri-monitor", version: ours, daemon: criServer("cni")},
	{name: "containerd + runc", network: plugins, handler: "runc", sync: syncBolt, slow: true, version: containerdVersion, daemon: containerd},
	{name: "containerd + crun", network: plugins, handler: "crun", sync: syncBolt, slow: true, version: containerdVersion, daemon: containerd},
	{name: "CRI-O + runc", network: plugins, handler: "runc", sync: syncFiles, slow: true, version: crioVersion, daemon: crio},
	{name: "CRI-O + crun", network: plugins, handler: "crun", sync: syncFiles, slow: true, version: crioVersion, daemon: crio},
}

func targetNames() []string {
	var out []string
	for _, t := range targets {
		out = append(out, t.name)
	}
	return out
}

// chosen are the targets that o names, by patterns as path.Match has them. None: all.
func chosen(o options) ([]target, error) {
	if len(o.targets) == 0 {
		return targets, nil
	}
	var out []target
	for _, name := range o.targets {
		found := false
		for _, t := range targets {
			if ok, err := path.Match(name, t.name); err != nil {
				return nil, fmt.Errorf("target %q: %w", name, err)
			} else if ok {
				out, found = append(out, t), true
			}
		}
		if !found {
			return nil, fmt.Errorf("no target %q; there are %q", name, targetNames())
		}
	}
	return out, nil
}

func (o options) bin(name string) string { return filepath.Join(o.repo, "bin", name) }

// driver is the cgroup driver's name, to cri-server as to CRI-O.
func (o options) driver() string {
	if o.systemd {
		return "systemd"
	}
	return "cgroupfs"
}

func output(name string, args ...string) string {
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

func ours(o options) string { return strings.Split(output(o.bin("cri-server"), "version"), "\n")[0] }

func containerdVersion(o options) string {
	f := strings.Fields(output(o.bin("peers/containerd"), "--version"))
	return "containerd " + f[min(2, len(f)-1)]
}

func crioVersion(o options) string {
	f := strings.Fields(output(o.bin("peers/crio"), "version"))
	return "CRI-O " + f[min(1, len(f)-1)]
}

// conflist is the reference configuration, without hostPorts being used.
const conflist = `{"cniVersion": "1.0.0", "name": "bench", "plugins": [
  {"type": "bridge", "bridge": "bench%d", "isGateway": true, "ipMasq": true,
   "ipam": {"type": "host-local", "dataDir": %q, "ranges": [[{"subnet": "10.%d.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
`

func criServer(network string) func(*daemon) (*exec.Cmd, error) {
	return func(d *daemon) (*exec.Cmd, error) {
		text := fmt.Sprintf(`socket = %q
state = %q
root = %q
monitor_path = %q
cgroup_driver = %q
[network]
mode = %q
conf_dir = %q
bin_dirs = [%q]
[image]
certs_dir = %q
[runtimes.crun]
engine = "oci"
path = %q
[runtimes.runc]
engine = "oci"
path = %q
`, d.socket, filepath.Join(d.state, "state"), d.root, d.o.bin("cri-monitor"), d.o.driver(), network, d.cni, d.o.bin("cni"), d.certs, d.o.bin("peers/crun-wrapped"), d.o.bin("peers/runc"))
		file := filepath.Join(d.dir, "config.toml")
		return exec.Command(d.o.bin("cri-server"), "serve", "--config", file), os.WriteFile(file, []byte(text), 0o644)
	}
}

func containerd(d *daemon) (*exec.Cmd, error) {
	text := fmt.Sprintf(`version = 4
root = %q
state = %q
[plugins."io.containerd.server.v1.grpc"]
  address = %q
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
      BinaryName = %q
      SystemdCgroup = %v
  [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.crun]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.crun.options]
      BinaryName = %q
      SystemdCgroup = %v
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = [%q]
    conf_dir = %q
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "registry.k8s.io/pause:bench"
[plugins."io.containerd.cri.v1.images".registry]
  config_path = %q
`, d.root, filepath.Join(d.state, "state"), d.socket, d.o.bin("peers/runc"), d.o.systemd, d.o.bin("peers/crun-wrapped"), d.o.systemd,
		d.o.bin("cni"), d.cni, d.certs)
	file := filepath.Join(d.dir, "config.toml")
	return exec.Command(d.o.bin("peers/containerd"), "--config", file, "--log-level", "warn"), os.WriteFile(file, []byte(text), 0o644)
}

func crio(d *daemon) (*exec.Cmd, error) {
	in := func(name string) string { return filepath.Join(d.state, name) }
	registries, policy := filepath.Join(d.dir, "registries.conf"), filepath.Join(d.dir, "policy.json")
	mirrors := fmt.Sprintf("[[registry]]\nprefix = \"registry.k8s.io\"\nlocation = %q\ninsecure = true\n", registryAddress)
	for name, text := range map[string]string{registries: mirrors, policy: `{"default": [{"type": "insecureAcceptAnything"}]}`} {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			return nil, err
		}
	}
	runtime := func(name string) string {
		return fmt.Sprintf("[crio.runtime.runtimes.%s]\nruntime_path = %q\nruntime_root = %q\nmonitor_path = \"/usr/bin/conmon\"\nmonitor_cgroup = \"pod\"\n",
			name, d.o.bin("peers/"+name+"-wrapped"), in(name))
	}
	text := fmt.Sprintf(`[crio]
root = %q
runroot = %q
storage_driver = "overlay"
log_dir = %q
version_file = %q
version_file_persist = ""
clean_shutdown_file = %q
[crio.api]
listen = %q
[crio.image]
pause_image = "registry.k8s.io/pause:bench"
signature_policy = %q
[crio.network]
network_dir = %q
plugin_dirs = [%q]
[crio.runtime]
default_runtime = "runc"
cgroup_manager = %q
conmon_cgroup = "pod"
namespaces_dir = %q
pinns_path = %q
container_exits_dir = %q
container_attach_socket_dir = %q
hooks_dir = []
pids_limit = 4096
log_level = "warn"
[crio.nri]
nri_listen = %q
%s%s`, d.root, in("run"), in("log"), in("version"), in("clean"), d.socket, policy, d.cni, d.o.bin("cni"), d.o.driver(), in("ns"), d.o.bin("peers/pinns"),
		in("exits"), in("attach"), in("nri.sock"), runtime("runc"), runtime("crun"))
	file := filepath.Join(d.dir, "config.toml")
	c := exec.Command(d.o.bin("peers/crio"), "--config", file, "--config-dir", "")
	c.Env = append(os.Environ(), "CONTAINER_REGISTRIES_CONF="+registries, "CONTAINER_REGISTRIES_CONF_DIR="+d.dir)
	return c, os.WriteFile(file, []byte(text), 0o644)
}
