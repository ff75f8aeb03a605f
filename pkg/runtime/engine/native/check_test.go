package native

import (
	"context"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/seed-9a14075a/cri-server/pkg/rootfs"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

// handled are the fields of the runtime-spec that the engine honours, by their JSON names. A prefix ending in a star
// stands for all that is below it.
var handled = strings.Fields(`
ociVersion hostname domainname annotations
root.path root.readonly
process.terminal process.consoleSize.height process.consoleSize.width process.user.uid process.user.gid process.user.umask
process.user.additionalGids process.args process.env process.cwd process.capabilities.bounding process.capabilities.effective
process.capabilities.inheritable process.capabilities.permitted process.capabilities.ambient process.rlimits.type
process.rlimits.hard process.rlimits.soft process.noNewPrivileges process.apparmorProfile process.oomScoreAdj
process.scheduler.policy process.scheduler.nice process.scheduler.priority process.scheduler.flags process.scheduler.runtime
process.scheduler.deadline process.scheduler.period process.selinuxLabel process.ioPriority.class process.ioPriority.priority
process.execCPUAffinity.initial process.execCPUAffinity.final
mounts.destination mounts.type mounts.source mounts.options mounts.uidMappings.* mounts.gidMappings.*
hooks.prestart.* hooks.createRuntime.* hooks.createContainer.* hooks.startContainer.* hooks.poststart.* hooks.poststop.*
linux.uidMappings.* linux.gidMappings.* linux.sysctl linux.namespaces.type linux.namespaces.path linux.devices.path
linux.devices.type linux.devices.major linux.devices.minor linux.devices.fileMode linux.devices.uid linux.devices.gid
linux.rootfsPropagation linux.maskedPaths linux.readonlyPaths linux.mountLabel linux.memoryPolicy.mode
linux.memoryPolicy.nodes linux.memoryPolicy.flags linux.personality.domain linux.timeOffsets.*
linux.seccomp.flags`)

// elsewhereHandled are those that the engine's caller has turned into Config: the cgroup and the compiled filter.
var elsewhereHandled = strings.Fields(`
linux.resources.* linux.cgroupsPath linux.seccomp.defaultAction linux.seccomp.defaultErrnoRet linux.seccomp.architectures
linux.seccomp.syscalls.*`)

// TestEveryField makes sure that a field that a newer runtime-spec brings is not ignored.
func TestEveryField(t *testing.T) {
	known := slices.Concat(handled, elsewhereHandled)
	for _, r := range refused {
		known = append(known, r.field, r.field+".*")
	}
	known = append(known, "linux.seccomp.listenerMetadata") // refused with listenerPath
	matches := func(field string) bool {
		for _, k := range known {
			if prefix, ok := strings.CutSuffix(k, "*"); k == field || ok && strings.HasPrefix(field, prefix) {
				return true
			}
		}
		return false
	}
	var walk func(typ reflect.Type, prefix string)
	walk = func(typ reflect.Type, prefix string) {
		for typ.Kind() == reflect.Pointer || typ.Kind() == reflect.Slice || typ.Kind() == reflect.Map {
			typ = typ.Elem()
		}
		if typ.Kind() != reflect.Struct {
			if !matches(prefix) {
				t.Errorf("%s is neither handled nor refused", prefix)
			}
			return
		}
		for f := range typ.Fields() {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			path := strings.TrimPrefix(prefix+"."+name, ".")
			if name == "" {
				path = prefix
			}
			walk(f.Type, path)
		}
	}
	walk(reflect.TypeFor[specs.Spec](), "")
}

// TestRefused needs no kernel: a bad spec is refused before anything is made.
func TestRefused(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*engine.Config)
		is     func(error) bool
	}{
		"intel rdt":        {func(c *engine.Config) { c.Spec.Linux.IntelRdt = &specs.LinuxIntelRdt{} }, errdefs.IsNotImplemented},
		"net devices":      {func(c *engine.Config) { c.Spec.Linux.NetDevices = map[string]specs.LinuxNetDevice{"eth9": {}} }, errdefs.IsNotImplemented},
		"listener":         {func(c *engine.Config) { c.Spec.Linux.Seccomp = &specs.LinuxSeccomp{ListenerPath: "/x"} }, errdefs.IsNotImplemented},
		"windows":          {func(c *engine.Config) { c.Spec.Windows = &specs.Windows{} }, errdefs.IsNotImplemented},
		"no mount ns":      {func(c *engine.Config) { c.Spec.Linux.Namespaces = nil }, errdefs.IsNotImplemented},
		"no spec":          {func(c *engine.Config) { c.Spec = nil }, errdefs.IsInvalidArgument},
		"no process":       {func(c *engine.Config) { c.Spec.Process = nil }, errdefs.IsInvalidArgument},
		"no args":          {func(c *engine.Config) { c.Spec.Process.Args = nil }, errdefs.IsInvalidArgument},
		"relative cwd":     {func(c *engine.Config) { c.Spec.Process.Cwd = "tmp" }, errdefs.IsInvalidArgument},
		"NUL":              {func(c *engine.Config) { c.Spec.Process.Env = []string{"A=\x00"} }, errdefs.IsInvalidArgument},
		"capability":       {func(c *engine.Config) { c.Spec.Process.Capabilities.Bounding = []string{"CAP_FLY"} }, errdefs.IsInvalidArgument},
		"profile unbuilt":  {func(c *engine.Config) { c.Spec.Linux.Seccomp = &specs.LinuxSeccomp{} }, errdefs.IsInvalidArgument},
		"odd filter":       {func(c *engine.Config) { c.Seccomp = make([]byte, 7) }, errdefs.IsInvalidArgument},
		"large filter":     {func(c *engine.Config) { c.Seccomp = make([]byte, 8*5000) }, errdefs.IsInvalidArgument},
		"relative dir":     {func(c *engine.Config) { c.Dir = "run" }, errdefs.IsInvalidArgument},
		"id":               {func(c *engine.Config) { c.ID = "../x" }, errdefs.IsInvalidArgument},
		"rootfs":           {func(c *engine.Config) { c.Rootfs = rootfs.Rootfs{} }, errdefs.IsInvalidArgument},
		"hostname of host": {func(c *engine.Config) { c.Spec.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.MountNamespace}} }, errdefs.IsInvalidArgument},
		"twice": {func(c *engine.Config) {
			c.Spec.Linux.Namespaces = append(c.Spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.PIDNamespace})
		}, errdefs.IsInvalidArgument},
		"unmapped user ns": {func(c *engine.Config) {
			c.Spec.Linux.Namespaces = append(c.Spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		}, errdefs.IsInvalidArgument},
		"offsets":     {func(c *engine.Config) { c.Spec.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {}} }, errdefs.IsInvalidArgument},
		"propagation": {func(c *engine.Config) { c.Spec.Linux.RootfsPropagation = "sideways" }, errdefs.IsInvalidArgument},
		"personality": {func(c *engine.Config) { c.Spec.Linux.Personality = &specs.LinuxPersonality{Domain: "BSD"} }, errdefs.IsInvalidArgument},
		"scheduler":   {func(c *engine.Config) { c.Spec.Process.Scheduler = &specs.Scheduler{Policy: "SCHED_X"} }, errdefs.IsInvalidArgument},
		"io priority": {func(c *engine.Config) {
			c.Spec.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE, Priority: 9}
		}, errdefs.IsInvalidArgument},
		"memory policy": {func(c *engine.Config) { c.Spec.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: "MPOL_X"} }, errdefs.IsInvalidArgument},
		"namespace path": {func(c *engine.Config) {
			c.Spec.Linux.Namespaces[0].Path = "/no/such/ns"
		}, errdefs.IsNotFound},
		"namespace is a file": {func(c *engine.Config) { c.Spec.Linux.Namespaces[0].Path = "/etc/passwd" }, errdefs.IsInvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			c := &engine.Config{ID: "x", Spec: newSpec("/bin/true"), Dir: "/nowhere", Rootfs: rootfs.Rootfs{Path: "/nowhere"}}
			tt.change(c)
			_, err := (&Engine{}).Create(context.Background(), c)
			if !tt.is(err) {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestParseOptions(t *testing.T) {
	for _, tt := range []struct {
		typ, opts string
		want      string // "" : refused
	}{
		{"tmpfs", "nosuid,nodev,mode=755", "set 6"},
		{"tmpfs", "ro,rw", "clear 1"},
		{"tmpfs", "rw,ro", "set 1"},
		{"tmpfs", "noatime,strictatime", "set 20 clear 70"},
		{"tmpfs", "noatime,relatime", "set 0 clear 70"},
		{"bind", "rbind,rro,rprivate", "recursive set 1"},
		{"bind", "bind,rnoatime,rnosuid", "recursive set 12 clear 70"},
		{"bind", "bind,mode=755", ""},
		{"bind", "bind,sync", "set 0"},
		{"bind", "bind,tmpcopyup", ""},
		{"proc", "tmpcopyup", ""},
		{"tmpfs", "idmap", ""},
	} {
		o, err := parseOptions(tt.typ, strings.Split(tt.opts, ","))
		if tt.want == "" {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%s %s: %v", tt.typ, tt.opts, err)
			}
			continue
		}
		a, want := o.attrs, tt.want
		if rest, ok := strings.CutPrefix(want, "recursive "); ok {
			a, want = o.recursive, rest
		}
		if got := describe(a); err != nil || got != want {
			t.Errorf("%s %s: %s, want %s; %v", tt.typ, tt.opts, got, want, err)
		}
	}
}

func TestNames(t *testing.T) {
	for name, want := range map[string]string{
		"net.ipv4.ip_forward": "net/ipv4/ip_forward", "net/ipv4/ip_forward": "net/ipv4/ip_forward",
		"net.ipv4.conf.eth0/100.forwarding": "net/ipv4/conf/eth0.100/forwarding", "net/ipv4/conf/eth0.100/forwarding": "net/ipv4/conf/eth0.100/forwarding",
	} {
		if got := sysctlPath(name); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	for _, tt := range []struct {
		name string
		env  []string
		want string
	}{
		{"/bin/x", nil, "/bin/x"},
		{"./x", []string{"PATH=/a"}, "./x"},
		{"x", []string{"PATH=/a", "PATH=/b/::.:rel:/c"}, "/b/x /c/x"},
		{"x", []string{"PATH="}, ""},
		{"x", nil, "/usr/local/sbin/x /usr/local/bin/x /usr/sbin/x /usr/bin/x /sbin/x /bin/x"},
	} {
		if got := strings.Join(candidates(tt.name, tt.env), " "); got != tt.want {
			t.Errorf("%s in %v: %s", tt.name, tt.env, got)
		}
	}
	for list, want := range map[string]string{"0": "0", "0-2,5": "0 1 2 5", "": "-", "3-1": "-", "-1": "-", "9": "-", "x": "-", "0,,1": "-"} {
		var got []byte
		if err := eachInRanges(list, 8, func(n int) { got = append(append(got, ' '), byte('0'+n)) }); err != nil {
			got = []byte(" -")
		}
		if string(got[1:]) != want {
			t.Errorf("%q: %s, want %s", list, got, want)
		}
	}
}
