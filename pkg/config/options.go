package config

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Option is one entry of the table.
type Option struct {
	// Key is the dotted TOML key.
	Key string
	// Flag is the name of the flag, by default the key with dashes. Options of runtime handlers have none.
	Flag string
	// Doc says what the option does, in Markdown, for the documentation, the help and the default file.
	Doc string
	// Live options take effect on SIGHUP; others need a restart of cri-server (which no container notices).
	Live bool
	// Default is the default value as a TOML literal.
	Default string
	// Origin says where the value came from.
	Origin Origin

	value value
}

// Type is what the documentation calls the option's type.
func (o *Option) Type() string { return o.value.typ() }

// Literal is the value in TOML.
func (o *Option) Literal() string { return o.value.literal() }

// FlagName is the option's flag without dashes, "" for none.
func (o *Option) FlagName() string {
	switch {
	case o.Flag != "":
		return o.Flag
	case strings.HasPrefix(o.Key, runtimesKey+"."):
		return ""
	}
	return strings.NewReplacer(".", "-", "_", "-").Replace(o.Key)
}

const (
	runtimesKey = "runtimes"
	// nativeHandler is the handler that is there without configuration.
	nativeHandler = "native"
)

// table is where every option but those of [runtimes.NAME] is declared.
func table(c *Config) []*Option {
	return slices.Concat(daemonOptions(c), containerOptions(c), networkOptions(&c.Network), streamOptions(&c.Stream), imageOptions(&c.Image), imageLimitOptions(&c.Image))
}

func daemonOptions(c *Config) []*Option {
	return []*Option{
		{Key: "socket", value: text(&c.Socket, "/run/cri-server/cri-server.sock", "path", socketPath),
			Doc: "Unix socket of the CRI; kubelet's `--container-runtime-endpoint` and crictl name it `unix://PATH`. A socket that systemd hands over is used instead."},
		{Key: "socket_mode", value: mode(&c.SocketMode, 0o660),
			Doc: "Permissions of the socket. Who can write to it is root on this machine."},
		{Key: "socket_group", value: text(&c.SocketGroup, "root", "group", notEmpty),
			Doc: "Group of the socket, by name or number."},
		{Key: "state", value: text(&c.State, "/run/cri-server", "path", absolute),
			Doc: "Directory for what is gone after a reboot: sockets, locks, the pods' files. Not below `root`."},
		{Key: "root", value: text(&c.Root, "/var/lib/cri-server", "path", absolute),
			Doc: "Directory for what stays: images, snapshots, records. One server uses it at a time."},
		{Key: "log_level", Live: true, value: choice(&c.LogLevel, "info", "debug", "info", "warn", "error"),
			Doc: "Least severity that is logged."},
		{Key: "log_format", value: choice(&c.LogFormat, "text", "text", "json"),
			Doc: "Form of the server's log on stderr."},
		{Key: "monitor_path", Flag: "monitor", value: text(&c.MonitorPath, "", "path", emptyOr(absolute)),
			Doc: "The cri-monitor binary. Empty: beside cri-server's own binary."},
		{Key: "monitor_upgrade", value: boolean(&c.MonitorUpgrade, true),
			Doc: "Have a running cri-monitor go on in that binary when the server starts and it is of another version. Containers do not notice."},
	}
}

func containerOptions(c *Config) []*Option {
	return []*Option{
		{Key: "cgroup_driver", value: choice(&c.CgroupDriver, "auto", "auto", "systemd", "cgroupfs"),
			Doc: "Who makes cgroups. auto: systemd where it is this machine's init, else cgroupfs. kubelet asks for it (RuntimeConfig)."},
		{Key: "default_cgroup_parent", value: text(&c.DefaultCgroupParent, "", "cgroup", nil),
			Doc: "Parent cgroup of pods that name none (kubelet always does), in the driver's form: `/path`, or `name.slice`. Empty: the driver's own."},
		{Key: "default_runtime", value: text(&c.DefaultRuntime, nativeHandler, "handler", notEmpty),
			Doc: "The `[runtimes.NAME]` of pods without a RuntimeClass."},
		{Key: "seccomp_default_profile", value: text(&c.SeccompDefaultProfile, "", "path", emptyOr(absolute)),
			Doc: "JSON file with the profile that RuntimeDefault stands for. Empty: the built-in profile."},
		{Key: "cdi_dirs", value: list(&c.CDIDirs, []string{"/etc/cdi", "/var/run/cdi"}, "paths", absolute),
			Doc: "Directories of CDI device specifications; those of a later one win."},
		{Key: "enable_unprivileged_ports", value: boolean(&c.EnableUnprivilegedPorts, true),
			Doc: "Lets containers with a network of their own bind ports below 1024 without a capability (`net.ipv4.ip_unprivileged_port_start=0`), unless the pod sets that sysctl."},
		{Key: "enable_unprivileged_icmp", value: boolean(&c.EnableUnprivilegedICMP, true),
			Doc: "Lets containers with a network of their own send pings without a capability (`net.ipv4.ping_group_range`), unless the pod sets that sysctl."},
		{Key: "max_exec_output", value: size(&c.MaxExecOutput, 15<<20, 1<<10, 1<<30),
			Doc: "Most bytes of stdout and stderr together that ExecSync returns; the rest is thrown away. kubelet accepts no message above 16 MiB."},
		{Key: "shm_size", value: size(&c.ShmSize, 64<<20, 1<<16, 1<<50),
			Doc: "Size of a pod's /dev/shm."},
		{Key: "nofile_soft", value: integer(&c.NofileSoft, 1024, 64, 1<<30),
			Doc: "Soft limit of open files in containers, whatever limit cri-server itself runs with."},
		{Key: "nofile_hard", value: integer(&c.NofileHard, 524288, 64, 1<<30),
			Doc: "Hard limit of open files in containers."},
	}
}

func networkOptions(n *Network) []*Option {
	return []*Option{
		{Key: "network.mode", Flag: "network", value: choice(&n.Mode, "auto", "auto", "cni", "embedded"),
			Doc: "How pods are connected. cni: by the first configuration in `conf_dir`, all plugins run as binaries. auto: the same, but bridge, host-local, portmap and loopback run inside cri-server. embedded: by a bridge network of cri-server's own; needs neither configuration nor plugins."},
		{Key: "network.conf_dir", value: text(&n.ConfDir, "/etc/cni/net.d", "path", absolute),
			Doc: "Directory of CNI configurations. Changes in it are seen without a restart."},
		{Key: "network.bin_dirs", value: list(&n.BinDirs, []string{"/opt/cni/bin", "/usr/lib/cni"}, "paths", absolute),
			Doc: "Directories of CNI plugins, searched in order."},
		{Key: "network.netns_dir", value: text(&n.NetnsDir, "/run/netns", "path", absolute),
			Doc: "Where pods' network namespaces are pinned; `ip netns` looks in the default."},
		{Key: "network.pod_cidr", value: list(&n.PodCIDR, []string{"10.85.0.0/16"}, "CIDRs", cidr),
			Doc: "Pod addresses of the embedded network, one IPv4 and one IPv6 range at most. kubelet's range, once told, takes its place."},
		{Key: "network.bridge", value: text(&n.Bridge, "cri0", "interface", interfaceName),
			Doc: "Bridge of the embedded network."},
	}
}

func streamOptions(s *Stream) []*Option {
	return []*Option{
		{Key: "stream.address", value: text(&s.Address, "127.0.0.1:0", "host:port", hostPort),
			Doc: "Where exec, attach and port-forward are served to kubelet and crictl. They prove themselves by an unguessable URL only, so an address others can reach should have TLS. Port 0 picks a free one."},
		{Key: "stream.idle_timeout", value: duration(&s.IdleTimeout, 4*time.Hour, time.Second, 1000*time.Hour),
			Doc: "Ends a stream on which nothing was sent for so long."},
		{Key: "stream.creation_timeout", value: duration(&s.CreationTimeout, 30*time.Second, time.Second, time.Hour),
			Doc: "How long a connected client may take to open the streams of its session."},
		{Key: "stream.tls_cert", value: text(&s.TLSCert, "", "path", emptyOr(absolute)),
			Doc: "PEM file with the certificate chain for exec, attach and port-forward. Empty: no TLS. Read anew for every connection."},
		{Key: "stream.tls_key", value: text(&s.TLSKey, "", "path", emptyOr(absolute)),
			Doc: "PEM file with the key of `tls_cert`."},
	}
}

func imageOptions(i *Image) []*Option {
	return []*Option{
		{Key: "image.certs_dir", Flag: "certs-dir", value: text(&i.CertsDir, "/etc/cri-server/certs.d", "path", absolute),
			Doc: "Registry mirrors and certificates, `HOST/hosts.toml` as in containerd. Read anew for every pull."},
		{Key: "image.snapshotter", value: choice(&i.Snapshotter, "auto", "auto", "overlay", "btrfs", "fuse-overlayfs", "copy"),
			Doc: "How writable layers are made. auto: the first of the others, in this order, that works on `root`'s file system; `status` says which."},
		{Key: "image.pull_stall_timeout", value: duration(&i.PullStallTimeout, time.Minute, time.Second, 24*time.Hour),
			Doc: "Gives up a pull that has received nothing for so long; a slow pull that goes on is never given up."},
		{Key: "image.pull_stall_bytes", value: integer(&i.PullStallBytes, 1024, 1, 1<<30),
			Doc: "Bytes that a pull must receive within `pull_stall_timeout`; with fewer it is given up."},
		{Key: "image.max_parallel_layers", value: integer(&i.MaxParallelLayers, 4, 1, 64),
			Doc: "Layers that are fetched and unpacked at a time, over all pulls."},
		{Key: "image.discard_blobs", value: boolean(&i.DiscardBlobs, false),
			Doc: "Deletes compressed layers once they are unpacked. Saves space; such images can't be exported."},
		{Key: "image.registries_files", value: list(&i.RegistriesFiles, []string{"/etc/cri-server/registries.yaml", "/etc/rancher/k3s/registries.yaml"}, "paths", absolute),
			Doc: "k3s's `registries.yaml`: mirrors, certificates and credentials of registries that `certs_dir` does not know. The first that exists counts. Read anew for every pull."},
		{Key: "image.import_dir", value: text(&i.ImportDir, "", "path", emptyOr(absolute)),
			Doc: "Directory whose image archives are imported at start. Empty: none."},
		{Key: "image.pinned", Live: true, value: list(&i.Pinned, nil, "patterns", notEmpty),
			Doc: "Names of images that kubelet's garbage collection must not remove, such as `registry.k8s.io/pause:*`; `*` stands for anything but a slash."},
		{Key: "image.auth_files", value: list(&i.AuthFiles, []string{"/etc/cri-server/auth.json"}, "paths", absolute),
			Doc: "Files in docker's config.json format with the node's own registry credentials and credential helpers, used where kubelet sends none."},
	}
}

// imageLimitOptions are caps on what comes from registries and archives.
func imageLimitOptions(i *Image) []*Option {
	return []*Option{
		{Key: "image.max_layers", value: integer(&i.MaxLayers, 500, 1, 500),
			Doc: "Layers that an image may have; overlayfs stacks 500."},
		{Key: "image.max_layer_bytes", value: integer(&i.MaxLayerBytes, 64<<30, 1<<20, 1<<50),
			Doc: "Bytes that a compressed layer may have."},
		{Key: "image.max_unpacked_bytes", value: integer(&i.MaxUnpackedBytes, 256<<30, 1<<20, 1<<50),
			Doc: "Bytes that a layer may unpack to: a decompression bomb ends here."},
		{Key: "image.max_layer_files", value: integer(&i.MaxLayerFiles, 4<<20, 1, 1<<40),
			Doc: "Files and directories that a layer may hold."},
		{Key: "image.max_manifest_bytes", value: integer(&i.MaxManifestBytes, 4<<20, 64<<10, 64<<20),
			Doc: "Bytes that a manifest or an index may have."},
		{Key: "image.max_config_bytes", value: integer(&i.MaxConfigBytes, 8<<20, 64<<10, 64<<20),
			Doc: "Bytes that an image's configuration may have."},
		{Key: "image.max_index_entries", value: integer(&i.MaxIndexEntries, 1024, 1, 1<<20),
			Doc: "Manifests that an index may name."},
		{Key: "image.max_path_length", value: integer(&i.MaxPathLength, 4096, 255, 4096),
			Doc: "Bytes that the path of a file in a layer may have."},
		{Key: "image.max_path_depth", value: integer(&i.MaxPathDepth, 256, 16, 2048),
			Doc: "Directories that may be nested in a layer."},
		{Key: "image.max_archive_bytes", value: integer(&i.MaxArchiveBytes, 256<<30, 1<<20, 1<<50),
			Doc: "Bytes that an imported archive may have, uncompressed."},
	}
}

// runtimeTable declares the options of one [runtimes.NAME].
func runtimeTable(name string, r *Runtime) []*Option {
	prefix := runtimesKey + "." + name + "."
	return []*Option{
		{Key: prefix + "engine", value: choice(&r.Engine, "native", "native", "oci"),
			Doc: "What starts containers. native: cri-server's own engine. oci: an OCI runtime binary (runc, crun, runsc, kata)."},
		{Key: prefix + "path", value: text(&r.Path, "", "path", emptyOr(absolute)),
			Doc: "The runtime binary of engine oci."},
		{Key: prefix + "root", value: text(&r.Root, "", "path", emptyOr(absolute)),
			Doc: "The runtime's state directory (its `--root`). Empty: one below `state`."},
		{Key: prefix + "args", value: list(&r.Args, nil, "strings", nil),
			Doc: "Further global arguments of the runtime binary, such as `--systemd-cgroup`."},
		{Key: prefix + "features", value: list(&r.Features, nil, "strings", feature),
			Doc: "What the handler can do, as told to kubelet: `recursive_read_only_mounts`, `user_namespaces`. Empty: the runtime is asked."},
	}
}

// Origin is where a value came from; the zero Origin is the default.
type Origin struct {
	File string
	Line int
	Flag string
}

func (o Origin) String() string {
	switch {
	case o.Flag != "":
		return "flag --" + o.Flag
	case o.File != "":
		return fmt.Sprintf("%s:%d", o.File, o.Line)
	}
	return "default"
}
