package native

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/capability"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Flags and steps as in stub/stub.c.
const (
	flagNNP = 1 << iota
	flagSeccomp
	flagPersonality
	flagMemPolicy
	flagTop
	flagEarly // the filter allows all that is to come
)

const (
	stepExecve = 19
	stepOrder  = 20
	stepScore  = 22
	stepLimit  = 23 // of the first limit
)

var steps = []string{"?", "security label", "hostname", "domainname", "session keyring", "personality", "memory policy",
	"close descriptors", "process.cwd", "process.cwd is outside of the root", "seccomp", "capability bounding set",
	"keep capabilities", "process.user.additionalGids", "process.user.gid", "process.user.uid", "capabilities",
	"ambient capabilities", "noNewPrivileges", "execve", "order", "root"}

// defaultPath is searched for a program when the environment has no PATH.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// identity is what a stub becomes.
type identity struct {
	flags, umask, seccompFlags, personality, memPolicy uint32
	nodes                                              [16]uint64
	uid, gid                                           uint32
	groups                                             []uint32
	bounding, permitted, effective, inheritable, amb   uint64
	seccomp                                            []byte
	hostname, domainname, cwd, keyring                 string
	apparmor, selinux                                  string
	paths, args, env                                   []string
}

// newIdentity translates the part of a spec's process that the stub itself takes on. filter is the compiled seccomp
// filter, sec the profile it was made from, for its flags.
func newIdentity(p *specs.Process, filter []byte, sec *specs.LinuxSeccomp) (*identity, error) {
	if len(p.Args) == 0 || p.Args[0] == "" {
		return nil, invalid("process.args is empty")
	}
	id := &identity{uid: p.User.UID, gid: p.User.GID, groups: p.User.AdditionalGids, umask: 0o022, seccomp: filter,
		cwd: p.Cwd, apparmor: p.ApparmorProfile, selinux: p.SelinuxLabel, args: p.Args, env: p.Env}
	if !path.IsAbs(p.Cwd) {
		return nil, invalid("process.cwd %q is not absolute", p.Cwd)
	}
	if p.User.Umask != nil {
		id.umask = *p.User.Umask
	}
	if p.NoNewPrivileges {
		id.flags |= flagNNP
	}
	if len(filter) > 0 {
		if len(filter)%8 != 0 || len(filter)/8 > unix.BPF_MAXINSNS {
			return nil, invalid("seccomp filter of %d bytes", len(filter))
		}
		id.flags |= flagSeccomp
		var err error
		if id.seccompFlags, err = seccompFlags(sec); err != nil {
			return nil, err
		}
	}
	for _, s := range [][]string{p.Args, p.Env, {p.Cwd, p.ApparmorProfile, p.SelinuxLabel}} {
		for _, v := range s {
			if strings.IndexByte(v, 0) >= 0 {
				return nil, invalid("a NUL byte in %q", v)
			}
		}
	}
	id.paths = candidates(p.Args[0], p.Env)
	return id, id.capabilities(p.Capabilities)
}

// candidates are the paths that execve is tried with, in turn.
func candidates(name string, env []string) []string {
	if strings.Contains(name, "/") {
		return []string{name}
	}
	list := defaultPath
	for _, e := range env { // the last one counts, as it does for the C library's getenv of most shells
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			list = v
		}
	}
	var paths []string
	for _, dir := range strings.Split(list, ":") {
		if path.IsAbs(dir) { // never a program from the working directory
			paths = append(paths, strings.TrimSuffix(dir, "/")+"/"+name)
		}
	}
	return paths
}

func seccompFlags(sec *specs.LinuxSeccomp) (uint32, error) {
	// With no flags given runc loads filters without the speculative store bypass mitigation, which became the
	// kernel's default in Linux 5.16.
	if sec == nil || sec.Flags == nil {
		return unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, nil
	}
	var flags uint32
	for _, f := range sec.Flags {
		switch f {
		case specs.LinuxSeccompFlagLog:
			flags |= unix.SECCOMP_FILTER_FLAG_LOG
		case specs.LinuxSeccompFlagSpecAllow:
			flags |= unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
		case "SECCOMP_FILTER_FLAG_TSYNC": // the stub has one thread
		case specs.LinuxSeccompFlagWaitKillableRecv: // concerns listeners only, which are refused
		default:
			return 0, invalid("linux.seccomp.flags: %q", f)
		}
	}
	return flags, nil
}

var capabilityBits = func() map[string]uint64 {
	m := map[string]uint64{}
	for _, c := range capability.ListKnown() {
		m["CAP_"+strings.ToUpper(c.String())] = 1 << uint(c)
	}
	return m
}()

func (id *identity) capabilities(c *specs.LinuxCapabilities) error {
	if c == nil {
		return nil
	}
	for _, set := range []struct {
		name string
		list []string
		to   *uint64
	}{{"bounding", c.Bounding, &id.bounding}, {"permitted", c.Permitted, &id.permitted}, {"effective", c.Effective, &id.effective},
		{"inheritable", c.Inheritable, &id.inheritable}, {"ambient", c.Ambient, &id.amb}} {
		for _, name := range set.list {
			bit, ok := capabilityBits[name]
			if !ok {
				return invalid("process.capabilities.%s: unknown capability %q", set.name, name)
			}
			*set.to |= bit
		}
	}
	return nil
}

// payload is the identity as the stub reads it.
func (id *identity) payload() []byte {
	size := 256 + 4*len(id.groups) + len(id.seccomp)
	strs := [][]string{{id.hostname, id.domainname, id.cwd, id.keyring, id.apparmor, id.selinux}, id.paths, id.args, id.env}
	for _, list := range strs {
		for _, s := range list {
			size += len(s) + 1
		}
	}
	b := make([]byte, 0, size)
	u32 := func(vs ...uint32) {
		for _, v := range vs {
			b = binary.NativeEndian.AppendUint32(b, v)
		}
	}
	u64 := func(vs ...uint64) {
		for _, v := range vs {
			b = binary.NativeEndian.AppendUint64(b, v)
		}
	}
	u32(id.flags, id.uid, id.gid, uint32(len(id.groups)))
	u64(id.bounding, id.permitted, id.effective, id.inheritable, id.amb)
	u32(uint32(len(id.paths)), uint32(len(id.args)), uint32(len(id.env)), uint32(len(id.seccomp)/8))
	u32(id.umask, id.seccompFlags, id.personality, id.memPolicy)
	u64(id.nodes[:]...)
	u32(id.groups...)
	if len(id.groups)%2 == 1 {
		u32(0)
	}
	b = append(b, id.seccomp...)
	for _, list := range strs {
		for _, s := range list {
			b = append(append(b, s...), 0)
		}
	}
	return b
}

// files are what goes with the payload.
func (id *identity) files(e *Engine) []int {
	if id.apparmor == "" && id.selinux == "" {
		return nil
	}
	return []int{int(e.proc.Fd())}
}

// become lets the stub become its program. It returns once execve has succeeded, which closes the stub's socket.
func (s *stub) become(id *identity) error {
	if err := s.order(opExec, 0, id.payload(), id.files(s.engine)...); err != nil {
		return classify(err)
	}
	return s.executed(id.args[0])
}

// run is become for a stub that is prepared.
func (s *stub) run(name string) error {
	sent := s.order(opGo, 0, nil)
	if err := s.settled(); err != nil { // that is why, should the order have failed too
		return err
	}
	if sent != nil {
		return classify(sent)
	}
	return s.executed(name)
}

// executed waits until the stub is its program.
func (s *stub) executed(name string) error {
	at, _, err := s.answer()
	switch {
	case errors.Is(err, io.EOF):
		return nil
	case err == nil:
		return errors.New("stub: answered to the order to exec")
	}
	return stepError(at, err, name)
}

// stepError names the step at which a stub could not become a program.
func stepError(at int, err error, name string) error {
	var failed *stubError
	if !errors.As(err, &failed) || at < 0 || at >= len(steps) {
		return err
	}
	if at != stepExecve {
		return fmt.Errorf("%s: %w", steps[at], classify(err))
	}
	if errors.Is(err, unix.EACCES) {
		err = fmt.Errorf("%w: %w", err, errdefs.ErrPermissionDenied)
	}
	return fmt.Errorf("execve %s: %w", name, classify(err))
}
