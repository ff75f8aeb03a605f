package enginetest

import (
	"fmt"
	"runtime"
	"testing"
	"unsafe"

	"github.com/moby/sys/capability"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

var privilegeTests = []test{
	{"privileges/capabilities", nil, capabilities},
	{"privileges/no_new_privs", nil, noNewPrivs},
	{"privileges/seccomp", nil, seccomp},
	{"privileges/seccomp with no_new_privs and a user", nil, seccompUnprivileged},
}

// mask is a set as /proc/<pid>/status prints it.
func mask(t *testing.T, names ...string) string {
	t.Helper()
	var bits uint64
	for _, n := range names {
		var c capability.Cap = -1
		for _, k := range capability.ListKnown() {
			if "CAP_"+upper(k.String()) == n {
				c = k
			}
		}
		if c < 0 {
			t.Fatalf("unknown %s", n)
		}
		bits |= 1 << uint(c)
	}
	return fmt.Sprintf("%016x", bits)
}

func upper(s string) string {
	b := []byte(s)
	for i, c := range b {
		if 'a' <= c && c <= 'z' {
			b[i] = c - 'a' + 'A'
		}
	}
	return string(b)
}

func capabilities(t *testing.T, s *suite) {
	two := []string{"CAP_CHOWN", "CAP_NET_RAW"}
	four := []string{"CAP_CHOWN", "CAP_NET_RAW", "CAP_KILL", "CAP_SYS_ADMIN"}
	for _, x := range []struct {
		name                string
		uid                 uint32
		set                 specs.LinuxCapabilities
		inh, prm, eff, amb  []string
		skipEffectiveOfRoot bool
	}{
		{"root with four", 0, specs.LinuxCapabilities{Bounding: four, Permitted: four, Effective: four}, nil, four, four, nil, false},
		{"root with none", 0, specs.LinuxCapabilities{}, nil, nil, nil, nil, false},
		{"user with none", 1000, specs.LinuxCapabilities{Bounding: four}, nil, nil, nil, nil, false},
		{"user with ambient", 1000, specs.LinuxCapabilities{Bounding: four, Permitted: two, Effective: two, Inheritable: two, Ambient: two}, two, two, two, two, false},
		{"user without ambient", 1000, specs.LinuxCapabilities{Bounding: four, Permitted: four, Effective: four}, nil, nil, nil, nil, false},
	} {
		b := s.live(t, "cat /proc/self/status", withCaps(x.set), func(c *specs.Spec) { c.Process.User.UID = x.uid })
		for field, want := range map[string]string{
			"CapInh": mask(t, x.inh...), "CapPrm": mask(t, x.prm...), "CapEff": mask(t, x.eff...),
			"CapBnd": mask(t, x.set.Bounding...), "CapAmb": mask(t, x.amb...),
		} {
			equal(t, x.name+": outside: "+field, status(t, b.pid(), field), want)
			equal(t, x.name+": inside: "+field, statusField(b.out.String(), field), want)
		}
	}
}

func noNewPrivs(t *testing.T, s *suite) {
	for set, want := range map[bool]string{true: "1", false: "0"} {
		b := s.live(t, "cat /proc/self/status", func(c *specs.Spec) { c.Process.NoNewPrivileges = set })
		equal(t, "outside", status(t, b.pid(), "NoNewPrivs"), want)
		equal(t, "inside", statusField(b.out.String(), "NoNewPrivs"), want)
	}
}

const errno = 33 // EDOM: no other part of a container answers with it

// blockSethostname is a filter in both forms: sethostname(2) fails with EDOM.
func blockSethostname(t *testing.T) (*specs.LinuxSeccomp, []byte) {
	t.Helper()
	arch, ok := map[string]struct {
		oci   specs.Arch
		audit uint32
	}{"amd64": {specs.ArchX86_64, unix.AUDIT_ARCH_X86_64}, "arm64": {specs.ArchAARCH64, unix.AUDIT_ARCH_AARCH64}}[runtime.GOARCH]
	if !ok {
		t.Skipf("no hand-made filter for %s", runtime.GOARCH)
	}
	// seccomp(2): struct seccomp_data has nr at 0 and arch at 4.
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 4},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: arch.audit, Jf: 3},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_SETHOSTNAME, Jf: 1},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | errno},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	raw := unsafe.Slice((*byte)(unsafe.Pointer(&filter[0])), len(filter)*int(unsafe.Sizeof(filter[0])))
	profile := &specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow, Architectures: []specs.Arch{arch.oci},
		Syscalls: []specs.LinuxSyscall{{Names: []string{"sethostname"}, Action: specs.ActErrno, ErrnoRet: ptr(uint(errno))}},
	}
	return profile, append([]byte(nil), raw...)
}

const trySethostname = `hostname x 2>&1 | grep -o 'Numerical argument out of domain'; grep Seccomp: /proc/self/status`

func (s *suite) filtered(t *testing.T, change ...func(*specs.Spec)) *box {
	t.Helper()
	profile, bpf := blockSethostname(t)
	b := s.box(t, s.spec(trySethostname+"\necho ready; cat >/dev/null", append(change, func(c *specs.Spec) { c.Linux.Seccomp = profile })...))
	b.cfg.Seccomp = bpf
	return b.start().ready("ready")
}

func seccomp(t *testing.T, s *suite) {
	b := s.filtered(t)
	equal(t, "inside", b.out.String(), "Numerical argument out of domain\nSeccomp:\t2\nready\n")
	equal(t, "outside", status(t, b.pid(), "Seccomp"), "2")
	equal(t, "NoNewPrivs", status(t, b.pid(), "NoNewPrivs"), "0")

	b = s.live(t, "")
	equal(t, "without a profile", status(t, b.pid(), "Seccomp"), "0")
}

func seccompUnprivileged(t *testing.T, s *suite) {
	b := s.filtered(t, func(c *specs.Spec) {
		c.Process.NoNewPrivileges = true
		c.Process.User = specs.User{UID: 1000, GID: 1000}
		c.Process.Capabilities = &specs.LinuxCapabilities{}
	})
	equal(t, "inside", b.out.String(), "Numerical argument out of domain\nSeccomp:\t2\nready\n")
	equal(t, "Uid", status(t, b.pid(), "Uid"), "1000 1000 1000 1000")
	equal(t, "CapEff", status(t, b.pid(), "CapEff"), mask(t))
}
