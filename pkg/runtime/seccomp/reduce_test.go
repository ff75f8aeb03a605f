//go:build cgo

package seccomp

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"unsafe"

	"github.com/opencontainers/runtime-spec/specs-go"
	lib "github.com/seccomp/libseccomp-golang"
	"golang.org/x/sys/unix"
)

// run evaluates a filter as the kernel does; ok is false for what is no valid filter.
func run(prog []unix.SockFilter, data *[16]uint32) (ret uint32, ok bool) {
	a := uint32(0)
	for pc := 0; pc < len(prog); pc++ {
		i, jump := prog[pc], false
		switch i.Code {
		case unix.BPF_RET | unix.BPF_K:
			return i.K, true
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			a = data[i.K/4]
			continue
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			a &= i.K
			continue
		case unix.BPF_JMP | unix.BPF_JA:
			pc += int(i.K)
			continue
		case unix.BPF_JMP | unix.BPF_JEQ:
			jump = a == i.K
		case unix.BPF_JMP | unix.BPF_JGT:
			jump = a > i.K
		case unix.BPF_JMP | unix.BPF_JGE:
			jump = a >= i.K
		case unix.BPF_JMP | unix.BPF_JSET:
			jump = a&i.K != 0
		default:
			return 0, false
		}
		if jump {
			pc += int(i.Jt)
		} else {
			pc += int(i.Jf)
		}
	}
	return 0, false
}

func decode(b []byte) []unix.SockFilter {
	var prog []unix.SockFilter
	for ; len(b) >= 8; b = b[8:] {
		prog = append(prog, unix.SockFilter{Code: binary.NativeEndian.Uint16(b), Jt: b[2], Jf: b[3], K: binary.NativeEndian.Uint32(b[4:])})
	}
	return prog
}

// same compares two filters with every number that is near one that either of them knows, and arguments likewise.
func same(t *testing.T, before, after []byte) {
	t.Helper()
	was, is := decode(before), decode(after)
	arches := []uint32{0, math.MaxUint32, unix.AUDIT_ARCH_X86_64, unix.AUDIT_ARCH_I386, unix.AUDIT_ARCH_AARCH64, unix.AUDIT_ARCH_ARM}
	words := []uint32{0, math.MaxUint32, 1 << 30}
	for _, i := range slices.Concat(was, is) {
		if i.Code&7 == unix.BPF_JMP {
			words = append(words, i.K-1, i.K, i.K+1, ^i.K)
		}
	}
	slices.Sort(words)
	words = slices.Compact(words)
	random := rand.New(rand.NewPCG(1, 2))
	for _, arch := range arches {
		for _, nr := range words {
			for range 8 {
				data := [16]uint32{nr, arch}
				for i := range data[2:] {
					data[2+i] = words[random.IntN(len(words))]
					if random.IntN(2) == 0 { // the upper half mostly
						data[2+i] = 0
					}
				}
				a, aok := run(was, &data)
				b, bok := run(is, &data)
				if a != b || aok != bok {
					t.Fatalf("%x: %#x %v, was %#x %v", data, b, bok, a, aok)
				}
			}
		}
	}
}

func unreduced(t testing.TB, p *specs.LinuxSeccomp) []byte {
	t.Helper()
	f, err := filter(p)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestReduceDefault(t *testing.T) {
	for _, caps := range [][]string{nil, {"CAP_SYS_ADMIN"}, {"CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_NET_ADMIN", "CAP_BPF"}} {
		p, err := RuntimeDefault(caps)
		if err != nil {
			t.Fatal(err)
		}
		before := unreduced(t, p)
		after := reduce(before)
		if len(after) > len(before)/2 {
			t.Errorf("%d instructions of %d are left", len(after)/8, len(before)/8)
		}
		t.Logf("%d -> %d instructions", len(before)/8, len(after)/8)
		same(t, before, after)
		if again := reduce(after); len(again) > len(after) {
			t.Errorf("%d instructions, reduced again %d", len(after)/8, len(again)/8)
		}
		if !bytes.Equal(after, reduce(before)) {
			t.Error("two results for one filter")
		}
	}
}

// Profiles of any shape: rules in any number, with and without arguments, of all actions and operators.
func TestReduceRandom(t *testing.T) {
	var names []string
	for nr := range 440 {
		if name, err := lib.ScmpSyscall(nr).GetName(); err == nil {
			names = append(names, name)
		}
	}
	actions := []specs.LinuxSeccompAction{specs.ActAllow, specs.ActErrno, specs.ActKillProcess, specs.ActTrap, specs.ActLog}
	ops := []specs.LinuxSeccompOperator{specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpEqualTo,
		specs.OpGreaterEqual, specs.OpGreaterThan, specs.OpMaskedEqual}
	arches := [][]specs.Arch{nil, {specs.ArchX86_64, specs.ArchX86, specs.ArchX32}, {specs.ArchX86}, {specs.ArchAARCH64, specs.ArchARM}}
	for seed := range uint64(24) {
		r := rand.New(rand.NewPCG(seed, 3))
		p := &specs.LinuxSeccomp{DefaultAction: actions[r.IntN(len(actions))], Architectures: arches[r.IntN(len(arches))]}
		for range 1 << r.IntN(9) {
			c := specs.LinuxSyscall{Names: []string{names[r.IntN(len(names))]}, Action: actions[r.IntN(len(actions))]}
			if c.Action == specs.ActErrno {
				code := uint(r.IntN(90))
				c.ErrnoRet = &code
			}
			if r.IntN(4) == 0 {
				for range 1 + r.IntN(3) {
					c.Args = append(c.Args, specs.LinuxSeccompArg{Index: uint(r.IntN(6)), Value: r.Uint64() >> r.IntN(64),
						ValueTwo: r.Uint64() >> r.IntN(64), Op: ops[r.IntN(len(ops))]})
				}
			}
			p.Syscalls = append(p.Syscalls, c)
		}
		before, err := filter(p)
		if err != nil {
			continue // libseccomp takes no contradictions
		}
		after := reduce(before)
		t.Logf("seed %d: %d -> %d instructions", seed, len(before)/8, len(after)/8)
		same(t, before, after)
	}
}

func TestReduceOther(t *testing.T) {
	const ld, jeq, jge, ret = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, unix.BPF_JMP | unix.BPF_JEQ, unix.BPF_JMP | unix.BPF_JGE, unix.BPF_RET | unix.BPF_K
	var far, many []unix.SockFilter // results and decisions out of reach of a conditional jump
	far = append(far, unix.SockFilter{Code: ld, K: offNr})
	many = append(many, unix.SockFilter{Code: ld, K: offNr})
	for i := range uint32(600) {
		far = append(far, unix.SockFilter{Code: jeq, Jf: 1, K: 2 * i}, unix.SockFilter{Code: ret, K: i % 3})
		many = append(many, unix.SockFilter{Code: jeq, Jf: 3, K: 2 * i}, unix.SockFilter{Code: ld, K: 16 + 4*(i%8)},
			unix.SockFilter{Code: jge, Jf: 1, K: i}, unix.SockFilter{Code: ret, K: i}, unix.SockFilter{Code: ld, K: offNr})
	}
	far, many = append(far, unix.SockFilter{Code: ret, K: 9}), append(many, unix.SockFilter{Code: ret, K: 9})
	for _, c := range []struct {
		name    string
		prog    []unix.SockFilter
		reduced bool
	}{
		{"empty", nil, false},
		{"one result", []unix.SockFilter{{Code: ret, K: 7}}, false},
		{"no end", []unix.SockFilter{{Code: ld, K: offNr}}, false},
		{"jump out", []unix.SockFilter{{Code: unix.BPF_JMP | unix.BPF_JA, K: math.MaxUint32}, {Code: ret}}, false},
		{"comparison of nothing", []unix.SockFilter{{Code: jeq, Jt: 1}, {Code: ret, K: 1}, {Code: ret, K: 2}}, false},
		{"what is not known", []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_LEN}, {Code: ret}}, false},
		{"number before architecture", []unix.SockFilter{{Code: ld, K: offNr}, {Code: jeq, Jf: 3, K: 5}, {Code: ld, K: offArch},
			{Code: jge, Jt: 1, K: 9}, {Code: ret, K: 1}, {Code: ret, K: 2}}, false},
		{"same either way", []unix.SockFilter{{Code: ld, K: offNr}, {Code: jge, Jt: 1, K: 5}, {Code: ret, K: 1}, {Code: ret, K: 1}}, true},
		{"many results", far, true},
		{"many decisions", many, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := encode(c.prog)
			after := reduce(before)
			if short := len(after) < len(before); short != c.reduced {
				t.Errorf("%d -> %d instructions", len(before)/8, len(after)/8)
			}
			same(t, before, after)
		})
	}
}

func BenchmarkLoad(b *testing.B) {
	p, err := RuntimeDefault([]string{"CAP_CHOWN"})
	if err != nil {
		b.Fatal(err)
	}
	long, err := filter(p)
	if err != nil {
		b.Fatal(err)
	}
	for name, f := range map[string][]byte{"libseccomp": long, "reduced": reduce(long)} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				b.StopTimer()
				done := make(chan error)
				go func() {
					runtime.LockOSThread() // the filter dies with the thread
					err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
					prog := unix.SockFprog{Len: uint16(len(f) / 8), Filter: (*unix.SockFilter)(unsafe.Pointer(&f[0]))}
					b.StartTimer()
					_, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog)))
					b.StopTimer()
					if err == nil && e != 0 {
						err = e
					}
					done <- err
				}()
				if err := <-done; err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
		})
	}
}

func BenchmarkReduce(b *testing.B) {
	p, err := RuntimeDefault([]string{"CAP_CHOWN"})
	if err != nil {
		b.Fatal(err)
	}
	f := unreduced(b, p)
	for b.Loop() {
		reduce(f)
	}
}
