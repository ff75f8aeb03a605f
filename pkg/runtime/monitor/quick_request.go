package monitor

import (
	"maps"
	"reflect"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/seed-9a14075a/cri-server/internal/quickjson"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

// A request for a container is written without reflection as far as it has what most have. Each part with a field that few have
// is left to encoding/json.

func (r *CreateRequest) appendJSON(b []byte) (_ []byte, err error) {
	spec, env := r.Spec, EnvBytes(nil)
	if spec != nil {
		var p *specs.Process
		if p, env = SplitEnv(spec.Process); env != nil {
			s := *spec
			s.Process = p
			spec = &s
		}
	}
	b = quickjson.String(quickjson.Key(append(b, '{'), "id"), r.ID)
	if b, err = appendSpec(quickjson.Key(b, "spec"), spec); err != nil {
		return nil, err
	}
	if b, err = seldom(b, "rootfs", r.Rootfs); err != nil {
		return nil, err
	}
	if len(r.Seccomp) > 0 {
		b = quickjson.Bytes(quickjson.Key(b, "seccomp"), r.Seccomp)
	}
	if r.Cgroup != nil {
		b = appendCgroup(quickjson.Key(b, "cgroup"), r.Cgroup)
	}
	if r.OCI != nil {
		if b, err = seldom(b, "oci", r.OCI); err != nil {
			return nil, err
		}
	}
	b = appendTrue(b, "start", r.Start)
	b = appendText(b, "log_dir", r.LogDir)
	b = appendText(b, "log_path", r.LogPath)
	b = appendTrue(b, "stdin", r.Stdin)
	b = appendTrue(b, "stdin_once", r.StdinOnce)
	if r.OOM != nil {
		b = appendCgroup(quickjson.Key(b, "oom"), r.OOM)
	}
	if len(env) > 0 {
		if b, err = seldom(b, "env_bytes", env); err != nil {
			return nil, err
		}
	}
	return append(b, '}'), nil
}

func appendTrue(b []byte, name string, v bool) []byte {
	if !v {
		return b
	}
	return quickjson.Bool(quickjson.Key(b, name), v)
}

func appendText(b []byte, name, v string) []byte {
	if v == "" {
		return b
	}
	return quickjson.String(quickjson.Key(b, name), v)
}

func appendTexts(b []byte, name string, list []string) []byte {
	if len(list) == 0 {
		return b
	}
	b = append(quickjson.Key(b, name), '[')
	for i, v := range list {
		if i > 0 {
			b = append(b, ',')
		}
		b = quickjson.String(b, v)
	}
	return append(b, ']')
}

func appendMap(b []byte, name string, m map[string]string) []byte {
	if len(m) == 0 {
		return b
	}
	b = append(quickjson.Key(b, name), '{')
	for i, key := range slices.Sorted(maps.Keys(m)) {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(quickjson.String(b, key), ':')
		b = quickjson.String(b, m[key])
	}
	return append(b, '}')
}

func appendCgroup(b []byte, c *engine.Cgroup) []byte {
	b = appendText(append(b, '{'), "unified", c.Unified)
	b = appendMap(b, "v1", c.V1)
	return append(appendTexts(b, "shared", c.Shared), '}')
}

// only tells whether rest, a copy without the fields that the caller writes, has no others.
func only[T any](rest T) bool { return reflect.ValueOf(&rest).Elem().IsZero() }

func appendSpec(b []byte, s *specs.Spec) (_ []byte, err error) {
	if s == nil {
		return append(b, "null"...), nil
	}
	rest := *s
	rest.Version, rest.Process, rest.Root, rest.Hostname, rest.Mounts, rest.Annotations, rest.Linux = "", nil, nil, "", nil, nil, nil
	if !only(rest) {
		text, err := marshalValue(s)
		return append(b, text...), err
	}
	b = quickjson.String(quickjson.Key(append(b, '{'), "ociVersion"), s.Version)
	if s.Process != nil {
		if b, err = appendProcess(quickjson.Key(b, "process"), s.Process); err != nil {
			return nil, err
		}
	}
	if s.Root != nil {
		b = quickjson.String(quickjson.Key(append(quickjson.Key(b, "root"), '{'), "path"), s.Root.Path)
		b = append(appendTrue(b, "readonly", s.Root.Readonly), '}')
	}
	b = appendText(b, "hostname", s.Hostname)
	if len(s.Mounts) > 0 {
		b = append(quickjson.Key(b, "mounts"), '[')
		for i := range s.Mounts {
			if i > 0 {
				b = append(b, ',')
			}
			if b, err = appendMount(b, &s.Mounts[i]); err != nil {
				return nil, err
			}
		}
		b = append(b, ']')
	}
	b = appendMap(b, "annotations", s.Annotations)
	if s.Linux != nil {
		if b, err = appendLinux(quickjson.Key(b, "linux"), s.Linux); err != nil {
			return nil, err
		}
	}
	return append(b, '}'), nil
}

func appendProcess(b []byte, p *specs.Process) (_ []byte, err error) {
	rest := *p
	rest.Terminal, rest.User, rest.Args, rest.Env, rest.Cwd, rest.Capabilities = false, specs.User{}, nil, nil, "", nil
	rest.Rlimits, rest.NoNewPrivileges, rest.ApparmorProfile, rest.OOMScoreAdj = nil, false, "", nil
	if !only(rest) {
		text, err := marshalValue(p)
		return append(b, text...), err
	}
	b = appendTrue(append(b, '{'), "terminal", p.Terminal)
	if b, err = seldom(b, "user", p.User); err != nil {
		return nil, err
	}
	b = appendTexts(b, "args", p.Args)
	b = appendTexts(b, "env", p.Env)
	b = quickjson.String(quickjson.Key(b, "cwd"), p.Cwd)
	if c := p.Capabilities; c != nil {
		b = append(quickjson.Key(b, "capabilities"), '{')
		b = appendTexts(b, "bounding", c.Bounding)
		b = appendTexts(b, "effective", c.Effective)
		b = appendTexts(b, "inheritable", c.Inheritable)
		b = appendTexts(b, "permitted", c.Permitted)
		b = append(appendTexts(b, "ambient", c.Ambient), '}')
	}
	if len(p.Rlimits) > 0 {
		if b, err = seldom(b, "rlimits", p.Rlimits); err != nil {
			return nil, err
		}
	}
	b = appendTrue(b, "noNewPrivileges", p.NoNewPrivileges)
	b = appendText(b, "apparmorProfile", p.ApparmorProfile)
	if p.OOMScoreAdj != nil {
		b = quickjson.Int(quickjson.Key(b, "oomScoreAdj"), *p.OOMScoreAdj)
	}
	return append(b, '}'), nil
}

func appendMount(b []byte, m *specs.Mount) ([]byte, error) {
	if len(m.UIDMappings)+len(m.GIDMappings) > 0 {
		text, err := marshalValue(m)
		return append(b, text...), err
	}
	b = quickjson.String(quickjson.Key(append(b, '{'), "destination"), m.Destination)
	b = appendText(b, "type", m.Type)
	b = appendText(b, "source", m.Source)
	return append(appendTexts(b, "options", m.Options), '}'), nil
}

func appendLinux(b []byte, l *specs.Linux) (_ []byte, err error) {
	rest := *l
	rest.Sysctl, rest.CgroupsPath, rest.Namespaces, rest.Seccomp, rest.MaskedPaths, rest.ReadonlyPaths = nil, "", nil, nil, nil, nil
	if !only(rest) {
		text, err := marshalValue(l)
		return append(b, text...), err
	}
	b = appendMap(append(b, '{'), "sysctl", l.Sysctl)
	b = appendText(b, "cgroupsPath", l.CgroupsPath)
	if len(l.Namespaces) > 0 {
		b = append(quickjson.Key(b, "namespaces"), '[')
		for i, n := range l.Namespaces {
			if i > 0 {
				b = append(b, ',')
			}
			b = quickjson.String(quickjson.Key(append(b, '{'), "type"), string(n.Type))
			b = append(appendText(b, "path", n.Path), '}')
		}
		b = append(b, ']')
	}
	if l.Seccomp != nil {
		if b, err = seldom(b, "seccomp", l.Seccomp); err != nil {
			return nil, err
		}
	}
	b = appendTexts(b, "maskedPaths", l.MaskedPaths)
	return append(appendTexts(b, "readonlyPaths", l.ReadonlyPaths), '}'), nil
}
