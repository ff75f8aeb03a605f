package native

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// afterPrepare are the system calls by which a prepared stub waits and becomes its program; see become in stub/become.h.
var afterPrepare = []uint32{unix.SYS_RECVMSG, unix.SYS_SENDMSG, unix.SYS_CHDIR, unix.SYS_GETCWD, unix.SYS_PRCTL, unix.SYS_SETGROUPS,
	unix.SYS_SETRESGID, unix.SYS_SETRESUID, unix.SYS_CAPSET, unix.SYS_EXECVE, unix.SYS_EXIT_GROUP}

// early tells whether a filter allows all that a stub still has to do, so that the stub can load it before its Start. A
// filter that looks at arguments on the way there counts as one that doesn't.
func early(filter []byte) bool {
	if len(filter) == 0 {
		return false
	}
	for _, nr := range afterPrepare {
		if verdict(filter, nr) != seccompRetAllow {
			return false
		}
	}
	return true
}

const (
	seccompRetAllow = 0x7fff0000
	noVerdict       = 0 // that is SECCOMP_RET_KILL_THREAD
)

// verdict runs a filter, in the classic BPF that seccomp(2) takes, on a system call of this architecture whose arguments
// are not known.
func verdict(filter []byte, nr uint32) uint32 {
	var m machine
	for pc := 0; pc >= 0 && pc+8 <= len(filter); pc += 8 {
		code, k := binary.NativeEndian.Uint16(filter[pc:]), binary.NativeEndian.Uint32(filter[pc+4:])
		switch code & 7 {
		case unix.BPF_JMP:
			pc += 8 * m.jump(code, k, int(filter[pc+2]), int(filter[pc+3]))
		case unix.BPF_RET:
			if code&0x18 == unix.BPF_A {
				return m.a
			}
			return k
		default:
			if !m.step(code, k, nr) {
				return noVerdict
			}
		}
	}
	return noVerdict
}

// machine is the state of a filter's run.
type machine struct {
	a, x uint32
	mem  [16]uint32
}

func (m *machine) operand(code uint16, k uint32) uint32 {
	if code&unix.BPF_X != 0 {
		return m.x
	}
	return k
}

// jump returns how many instructions to leave out.
func (m *machine) jump(code uint16, k uint32, yes, no int) int {
	v := m.operand(code, k)
	is := false
	switch code & 0xf0 {
	case unix.BPF_JA:
		return int(k)
	case unix.BPF_JEQ:
		is = m.a == v
	case unix.BPF_JGT:
		is = m.a > v
	case unix.BPF_JGE:
		is = m.a >= v
	case unix.BPF_JSET:
		is = m.a&v != 0
	}
	if is {
		return yes
	}
	return no
}

// step is false for what can't be known.
func (m *machine) step(code uint16, k, nr uint32) bool {
	at := k % uint32(len(m.mem)) // the kernel takes no larger ones
	switch code {
	case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
		switch k { // offsets in struct seccomp_data
		case 0:
			m.a = nr
		case 4:
			m.a = auditArch
		default:
			return false
		}
	case unix.BPF_LD | unix.BPF_IMM:
		m.a = k
	case unix.BPF_LDX | unix.BPF_IMM:
		m.x = k
	case unix.BPF_LD | unix.BPF_MEM:
		m.a = m.mem[at]
	case unix.BPF_LDX | unix.BPF_MEM:
		m.x = m.mem[at]
	case unix.BPF_ST:
		m.mem[at] = m.a
	case unix.BPF_STX:
		m.mem[at] = m.x
	case unix.BPF_MISC | unix.BPF_TAX:
		m.x = m.a
	case unix.BPF_MISC | unix.BPF_TXA:
		m.a = m.x
	default:
		return code&7 == unix.BPF_ALU && m.alu(code, m.operand(code, k))
	}
	return true
}

func (m *machine) alu(code uint16, v uint32) bool {
	op := code & 0xf0
	if (op == unix.BPF_LSH || op == unix.BPF_RSH) && v > 31 {
		return false
	}
	switch op {
	case unix.BPF_AND:
		m.a &= v
	case unix.BPF_OR:
		m.a |= v
	case unix.BPF_ADD:
		m.a += v
	case unix.BPF_SUB:
		m.a -= v
	case unix.BPF_LSH:
		m.a <<= v
	case unix.BPF_RSH:
		m.a >>= v
	default: // compilers of filters don't use the rest
		return false
	}
	return true
}
