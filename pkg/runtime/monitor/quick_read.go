package monitor

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/seed-9a14075a/cri-server/internal/quickjson"
	"github.com/seed-9a14075a/cri-server/pkg/rootfs"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

// A request for a container is read without reflection where it has what most have, see package quickjson. Fields of a spec
// that few have are left to encoding/json one by one; a message with a field that is not known here is left to it as a whole.

// quickReader is a message that reads itself. False, and nothing has changed: encoding/json must read it.
type quickReader interface {
	quickRead(b []byte) bool
}

func (r *CreateRequest) quickRead(b []byte) bool {
	q := quickjson.NewReader(b)
	var env EnvBytes
	into := r
	r = &CreateRequest{}
	q.Object(func(name []byte) {
		switch string(name) {
		case "id":
			r.ID = q.String()
		case "spec":
			r.Spec = readSpec(q)
		case "rootfs":
			readRootfs(q, &r.Rootfs)
		case "seccomp":
			r.Seccomp = q.Bytes()
		case "cgroup":
			r.Cgroup = readCgroup(q)
		case "start":
			r.Start = q.Bool()
		case "log_dir":
			r.LogDir = q.String()
		case "log_path":
			r.LogPath = q.String()
		case "stdin":
			r.Stdin = q.Bool()
		case "stdin_once":
			r.StdinOnce = q.Bool()
		case "env_bytes":
			env = EnvBytes{}
			q.Array(func() { env = append(env, q.Bytes()) })
		case "oci", "oom":
			q.Field(name, r)
		default:
			q.Refuse()
		}
	})
	if !q.Done() {
		return false
	}
	if r.Spec != nil {
		env.Restore(r.Spec.Process)
	}
	*into = *r
	return true
}

func readRootfs(q *quickjson.Reader, r *rootfs.Rootfs) {
	q.Object(func(name []byte) {
		switch string(name) {
		case "lower":
			r.Lower = q.Strings()
		case "upper":
			r.Upper = q.String()
		case "work":
			r.Work = q.String()
		case "options":
			r.Options = q.Strings()
		case "path":
			r.Path = q.String()
		case "fuse":
			r.Fuse = q.String()
		default:
			q.Refuse()
		}
	})
}

func readCgroup(q *quickjson.Reader) *engine.Cgroup {
	c := &engine.Cgroup{}
	q.Object(func(name []byte) {
		switch string(name) {
		case "unified":
			c.Unified = q.String()
		case "v1":
			c.V1 = q.Map()
		case "shared":
			c.Shared = q.Strings()
		default:
			q.Refuse()
		}
	})
	return c
}

func readSpec(q *quickjson.Reader) *specs.Spec {
	s := &specs.Spec{}
	q.Object(func(name []byte) {
		switch string(name) {
		case "ociVersion":
			s.Version = q.String()
		case "process":
			s.Process = readProcess(q)
		case "root":
			s.Root = readRoot(q)
		case "hostname":
			s.Hostname = q.String()
		case "mounts":
			s.Mounts = []specs.Mount{}
			q.Array(func() { s.Mounts = append(s.Mounts, readMount(q)) })
		case "annotations":
			s.Annotations = q.Map()
		case "linux":
			s.Linux = readLinux(q)
		default:
			q.Field(name, s)
		}
	})
	return s
}

func readRoot(q *quickjson.Reader) *specs.Root {
	r := &specs.Root{}
	q.Object(func(name []byte) {
		switch string(name) {
		case "path":
			r.Path = q.String()
		case "readonly":
			r.Readonly = q.Bool()
		default:
			q.Refuse()
		}
	})
	return r
}

func readProcess(q *quickjson.Reader) *specs.Process {
	p := &specs.Process{}
	q.Object(func(name []byte) {
		switch string(name) {
		case "terminal":
			p.Terminal = q.Bool()
		case "user":
			readUser(q, &p.User)
		case "args":
			p.Args = q.Strings()
		case "env":
			p.Env = q.Strings()
		case "cwd":
			p.Cwd = q.String()
		case "capabilities":
			p.Capabilities = readCapabilities(q)
		case "rlimits":
			p.Rlimits = []specs.POSIXRlimit{}
			q.Array(func() { p.Rlimits = append(p.Rlimits, readRlimit(q)) })
		case "noNewPrivileges":
			p.NoNewPrivileges = q.Bool()
		case "oomScoreAdj":
			v := q.Int()
			p.OOMScoreAdj = &v
		default:
			q.Field(name, p)
		}
	})
	return p
}

func readUser(q *quickjson.Reader, u *specs.User) {
	q.Object(func(name []byte) {
		switch string(name) {
		case "uid":
			u.UID = q.Uint32()
		case "gid":
			u.GID = q.Uint32()
		case "additionalGids":
			u.AdditionalGids = []uint32{}
			q.Array(func() { u.AdditionalGids = append(u.AdditionalGids, q.Uint32()) })
		default:
			q.Field(name, u)
		}
	})
}

func readCapabilities(q *quickjson.Reader) *specs.LinuxCapabilities {
	c := &specs.LinuxCapabilities{}
	q.Object(func(name []byte) {
		switch string(name) {
		case "bounding":
			c.Bounding = q.Strings()
		case "effective":
			c.Effective = q.Strings()
		case "inheritable":
			c.Inheritable = q.Strings()
		case "permitted":
			c.Permitted = q.Strings()
		case "ambient":
			c.Ambient = q.Strings()
		default:
			q.Refuse()
		}
	})
	return c
}

func readRlimit(q *quickjson.Reader) (l specs.POSIXRlimit) {
	q.Object(func(name []byte) {
		switch string(name) {
		case "type":
			l.Type = q.String()
		case "hard":
			l.Hard = q.Uint64()
		case "soft":
			l.Soft = q.Uint64()
		default:
			q.Refuse()
		}
	})
	return l
}

func readMount(q *quickjson.Reader) (m specs.Mount) {
	q.Object(func(name []byte) {
		switch string(name) {
		case "destination":
			m.Destination = q.String()
		case "type":
			m.Type = q.String()
		case "source":
			m.Source = q.String()
		case "options":
			m.Options = q.Strings()
		default:
			q.Field(name, &m)
		}
	})
	return m
}

func readLinux(q *quickjson.Reader) *specs.Linux {
	l := &specs.Linux{}
	q.Object(func(name []byte) {
		switch string(name) {
		case "sysctl":
			l.Sysctl = q.Map()
		case "cgroupsPath":
			l.CgroupsPath = q.String()
		case "namespaces":
			l.Namespaces = []specs.LinuxNamespace{}
			q.Array(func() { l.Namespaces = append(l.Namespaces, readNamespace(q)) })
		case "seccomp":
			l.Seccomp = readSeccomp(q)
		case "maskedPaths":
			l.MaskedPaths = q.Strings()
		case "readonlyPaths":
			l.ReadonlyPaths = q.Strings()
		default:
			q.Field(name, l)
		}
	})
	return l
}

// readSeccomp reads what lean leaves of a profile.
func readSeccomp(q *quickjson.Reader) *specs.LinuxSeccomp {
	s := &specs.LinuxSeccomp{}
	q.Object(func(name []byte) {
		switch string(name) {
		case "defaultAction":
			s.DefaultAction = specs.LinuxSeccompAction(q.String())
		default:
			q.Field(name, s)
		}
	})
	return s
}

func readNamespace(q *quickjson.Reader) (n specs.LinuxNamespace) {
	q.Object(func(name []byte) {
		switch string(name) {
		case "type":
			n.Type = specs.LinuxNamespaceType(q.String())
		case "path":
			n.Path = q.String()
		default:
			q.Refuse()
		}
	})
	return n
}

func (t *target) quickRead(b []byte) bool {
	q := quickjson.NewReader(b)
	into := t
	t = &target{}
	q.Object(func(name []byte) {
		switch string(name) {
		case "id":
			t.ID = q.String()
		case "signal":
			t.Signal = q.Int()
		default:
			q.Refuse()
		}
	})
	if q.Done() {
		*into = *t
	}
	return q.Done()
}
