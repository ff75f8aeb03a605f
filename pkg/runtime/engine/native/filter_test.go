package native

import (
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"
)

// bpf is a filter of instructions: code, jt, jf, k.
func bpf(ins ...[4]uint32) []byte {
	var b []byte
	for _, i := range ins {
		b = binary.NativeEndian.AppendUint16(b, uint16(i[0]))
		b = append(b, byte(i[1]), byte(i[2]))
		b = binary.NativeEndian.AppendUint32(b, i[3])
	}
	return b
}

func TestEarly(t *testing.T) {
	const (
		load  = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		jeq   = unix.BPF_JMP | unix.BPF_JEQ
		allow = seccompRetAllow
		errno = 0x50001
	)
	ret := func(v uint32) [4]uint32 { return [4]uint32{unix.BPF_RET, 0, 0, v} }
	for name, tt := range map[string]struct {
		filter []byte
		want   bool
	}{
		"none":            {nil, false},
		"all":             {bpf(ret(allow)), true},
		"nothing":         {bpf(ret(errno)), false},
		"logged":          {bpf(ret(0x7ffc0000)), false},
		"this arch":       {bpf([4]uint32{load, 0, 0, 4}, [4]uint32{jeq, 0, 1, auditArch}, ret(allow), ret(errno)), true},
		"another arch":    {bpf([4]uint32{load, 0, 0, 4}, [4]uint32{jeq, 1, 0, auditArch}, ret(allow), ret(errno)), false},
		"not its wait":    {bpf([4]uint32{load}, [4]uint32{jeq, 0, 1, unix.SYS_RECVMSG}, ret(errno), ret(allow)), false},
		"not its end":     {bpf([4]uint32{load}, [4]uint32{jeq, 0, 1, unix.SYS_EXECVE}, ret(errno), ret(allow)), false},
		"something else":  {bpf([4]uint32{load}, [4]uint32{jeq, 0, 1, unix.SYS_MOUNT}, ret(errno), ret(allow)), true},
		"an argument":     {bpf([4]uint32{load, 0, 0, 16}, [4]uint32{jeq, 0, 1, 3}, ret(allow), ret(allow)), false},
		"accumulator":     {bpf([4]uint32{unix.BPF_LD | unix.BPF_IMM, 0, 0, allow}, [4]uint32{unix.BPF_RET | unix.BPF_A}), true},
		"memory":          {bpf([4]uint32{unix.BPF_LD | unix.BPF_IMM, 0, 0, allow}, [4]uint32{unix.BPF_ST, 0, 0, 3}, [4]uint32{load}, [4]uint32{unix.BPF_LD | unix.BPF_MEM, 0, 0, 3}, [4]uint32{unix.BPF_RET | unix.BPF_A}), true},
		"and":             {bpf([4]uint32{load}, [4]uint32{unix.BPF_ALU | unix.BPF_AND, 0, 0, 0}, [4]uint32{jeq, 0, 1, 0}, ret(allow), ret(errno)), true},
		"index":           {bpf([4]uint32{load}, [4]uint32{unix.BPF_MISC | unix.BPF_TAX}, [4]uint32{unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_X, 0, 1, 0}, ret(allow), ret(errno)), true},
		"a far jump":      {bpf([4]uint32{unix.BPF_JMP | unix.BPF_JA, 0, 0, 1}, ret(errno), ret(allow)), true},
		"out of it":       {bpf([4]uint32{unix.BPF_JMP | unix.BPF_JA, 0, 0, 1 << 20}, ret(allow)), false},
		"no end":          {bpf([4]uint32{load}), false},
		"half of one":     {bpf(ret(allow))[:7], false},
		"a wide shift":    {bpf([4]uint32{unix.BPF_ALU | unix.BPF_LSH, 0, 0, 32}, ret(allow)), false},
		"a division":      {bpf([4]uint32{unix.BPF_ALU | unix.BPF_DIV, 0, 0, 2}, ret(allow)), false},
		"a negative jump": {bpf([4]uint32{unix.BPF_JMP | unix.BPF_JA, 0, 0, ^uint32(0)}, ret(allow)), false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := early(tt.filter); got != tt.want {
				t.Error(got)
			}
		})
	}
}

// A filter that can't be loaded early is loaded at the start, with and without no_new_privs.
func TestFilterIsLoaded(t *testing.T) {
	b := newBed(t)
	const load, jeq = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, unix.BPF_JMP | unix.BPF_JEQ
	forbid := func(nr uint32, more ...[4]uint32) []byte {
		return bpf(append(more, [4]uint32{load}, [4]uint32{jeq, 0, 1, nr}, [4]uint32{unix.BPF_RET, 0, 0, 0x50001}, [4]uint32{unix.BPF_RET, 0, 0, seccompRetAllow})...)
	}
	for name, tt := range map[string]struct {
		filter []byte
		nnp    bool
	}{
		"early":                 {forbid(unix.SYS_MKDIRAT), false},
		"early, no_new_privs":   {forbid(unix.SYS_MKDIRAT), true},
		"its wait is forbidden": {forbid(unix.SYS_RECVMSG), false},
		"identity is forbidden": {forbid(unix.SYS_SETRESUID), true},
	} {
		t.Run(name, func(t *testing.T) {
			spec := newSpec("/bin/grep", "Seccomp_filters", "/proc/self/status")
			spec.Process.NoNewPrivileges = tt.nnp
			c := b.config(t, spec)
			c.Seccomp = tt.filter
			if out, code := b.output(t, c); code != 0 || out != "Seccomp_filters:\t1\n" {
				t.Errorf("code %d: %q", code, out)
			}
		})
	}
}
