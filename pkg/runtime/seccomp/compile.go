//go:build cgo

package seccomp

import (
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	lib "github.com/seccomp/libseccomp-golang"
	"golang.org/x/sys/unix"
)

// maxFilter is the kernel's BPF_MAXINSNS (linux/bpf_common.h).
const maxFilter = 4096

var libActions = map[specs.LinuxSeccompAction]lib.ScmpAction{
	specs.ActKill: lib.ActKillThread, specs.ActKillThread: lib.ActKillThread, specs.ActKillProcess: lib.ActKillProcess,
	specs.ActTrap: lib.ActTrap, specs.ActErrno: lib.ActErrno, specs.ActTrace: lib.ActTrace, specs.ActAllow: lib.ActAllow,
	specs.ActLog: lib.ActLog,
}

var libOperators = map[specs.LinuxSeccompOperator]lib.ScmpCompareOp{
	specs.OpNotEqual: lib.CompareNotEqual, specs.OpLessThan: lib.CompareLess, specs.OpLessEqual: lib.CompareLessOrEqual,
	specs.OpEqualTo: lib.CompareEqual, specs.OpGreaterEqual: lib.CompareGreaterEqual, specs.OpGreaterThan: lib.CompareGreater,
	specs.OpMaskedEqual: lib.CompareMaskedEqual,
}

var libArches = map[specs.Arch]lib.ScmpArch{
	specs.ArchX86: lib.ArchX86, specs.ArchX86_64: lib.ArchAMD64, specs.ArchX32: lib.ArchX32, specs.ArchARM: lib.ArchARM,
	specs.ArchAARCH64: lib.ArchARM64, specs.ArchMIPS: lib.ArchMIPS, specs.ArchMIPS64: lib.ArchMIPS64,
	specs.ArchMIPS64N32: lib.ArchMIPS64N32, specs.ArchMIPSEL: lib.ArchMIPSEL, specs.ArchMIPSEL64: lib.ArchMIPSEL64,
	specs.ArchMIPSEL64N32: lib.ArchMIPSEL64N32, specs.ArchPPC: lib.ArchPPC, specs.ArchPPC64: lib.ArchPPC64,
	specs.ArchPPC64LE: lib.ArchPPC64LE, specs.ArchS390: lib.ArchS390, specs.ArchS390X: lib.ArchS390X,
	specs.ArchPARISC: lib.ArchPARISC, specs.ArchPARISC64: lib.ArchPARISC64, specs.ArchRISCV64: lib.ArchRISCV64,
	specs.ArchLOONGARCH64: lib.ArchLOONGARCH64,
}

// compile makes the filter, in the shortest form.
func compile(p *specs.LinuxSeccomp) ([]byte, error) {
	bpf, err := filter(p)
	if err != nil {
		return nil, err
	}
	bpf = reduce(bpf)
	if n := len(bpf) / 8; n > maxFilter {
		return nil, fmt.Errorf("the filter has %d instructions, the kernel takes %d: %w", n, maxFilter, errdefs.ErrInvalidArgument)
	}
	return bpf, nil
}

// filter makes the filter with libseccomp. A syscall that this libseccomp does not know is left out, as OCI runtimes do: a profile
// names the syscalls of newer kernels too. Calls beyond the newest one that is named answer ENOSYS (see enosys).
func filter(p *specs.LinuxSeccomp) ([]byte, error) {
	def, err := action(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return nil, fmt.Errorf("default action: %w", err)
	}
	f, err := lib.NewFilter(def)
	if err != nil {
		return nil, fmt.Errorf("new filter: %w", err)
	}
	defer f.Release()
	native, err := lib.GetNativeArch()
	if err != nil {
		return nil, fmt.Errorf("native architecture: %w", err)
	}
	arches := []lib.ScmpArch{native}
	for _, a := range p.Architectures {
		if !slices.Contains(arches, libArches[a]) {
			arches = append(arches, libArches[a])
		}
	}
	for _, a := range arches[1:] {
		if err := f.AddArch(a); err != nil {
			return nil, fmt.Errorf("architecture %s: %w", a, err)
		}
	}
	// A binary tree: a third of the time to load, and a few comparisons for each call instead of hundreds. libseccomp
	// before 2.5 can't; the list is right too.
	_ = f.SetOptimize(2)
	for _, c := range p.Syscalls {
		if err := addRule(f, def, c); err != nil {
			return nil, err
		}
	}
	bpf, err := export(f)
	if err != nil {
		return nil, fmt.Errorf("export filter: %w", err)
	}
	if def.GetReturnCode() != int16(unix.ENOSYS) && p.DefaultAction != specs.ActAllow && p.DefaultAction != specs.ActLog {
		bpf = append(enosys(newest(p, arches)), bpf...)
	}
	return bpf, nil
}

func action(a specs.LinuxSeccompAction, ret *uint) (lib.ScmpAction, error) {
	act, ok := libActions[a]
	if !ok {
		return act, fmt.Errorf("unknown action %q: %w", a, errdefs.ErrInvalidArgument)
	}
	if a != specs.ActErrno && a != specs.ActTrace {
		return act, nil // errnoRet means nothing to the others
	}
	code := uint(unix.EPERM)
	if ret != nil {
		code = *ret
	}
	if code > 4095 { // MAX_ERRNO: what is beyond is no errno to libc
		return act, fmt.Errorf("errno %d is out of range: %w", code, errdefs.ErrInvalidArgument)
	}
	return act.SetReturnCode(int16(code)), nil
}

func addRule(f *lib.ScmpFilter, def lib.ScmpAction, c specs.LinuxSyscall) error {
	act, err := action(c.Action, c.ErrnoRet)
	if err != nil {
		return fmt.Errorf("rule for %v: %w", c.Names, err)
	}
	if act == def {
		return nil // libseccomp refuses rules that change nothing
	}
	var conds []lib.ScmpCondition
	seen, twice := map[uint]bool{}, false
	for _, a := range c.Args {
		values := []uint64{a.Value}
		if a.Op == specs.OpMaskedEqual {
			values = []uint64{a.Value, a.ValueTwo}
		}
		cond, err := lib.MakeCondition(a.Index, libOperators[a.Op], values...)
		if err != nil {
			return fmt.Errorf("argument %d of %v: %w", a.Index, c.Names, err)
		}
		twice = twice || seen[a.Index]
		seen[a.Index] = true
		conds = append(conds, cond)
	}
	for _, name := range c.Names {
		call, err := lib.GetSyscallFromName(name)
		if err != nil {
			continue
		}
		switch {
		case len(conds) == 0:
			err = f.AddRule(call, act)
		case twice:
			// libseccomp takes one condition for each argument; OCI runtimes make these alternatives.
			for _, one := range conds {
				if err = f.AddRuleConditional(call, act, []lib.ScmpCondition{one}); err != nil {
					break
				}
			}
		default:
			err = f.AddRuleConditional(call, act, conds)
		}
		if err != nil {
			return fmt.Errorf("rule for %s: %w", name, err)
		}
	}
	return nil
}

// newest returns for each architecture the highest number of a syscall that the profile names.
func newest(p *specs.LinuxSeccomp, arches []lib.ScmpArch) map[uint32]uint32 {
	top := map[uint32]uint32{}
	for _, a := range arches {
		audit, ok := auditArch[a]
		if !ok {
			continue
		}
		for _, c := range p.Syscalls {
			for _, name := range c.Names {
				// A negative number stands for a call that the architecture does not have.
				if n, err := lib.GetSyscallFromNameByArch(name, a); err == nil && n >= 0 {
					top[audit] = max(top[audit], uint32(n))
				}
			}
		}
	}
	return top
}

// auditArch are the architectures that get the ENOSYS answer (linux/audit.h): those this project is built for, and
// their 32-bit modes. x32 shares x86_64's value and is told apart by bit 30 of the number.
var auditArch = map[lib.ScmpArch]uint32{
	lib.ArchAMD64: unix.AUDIT_ARCH_X86_64, lib.ArchX86: unix.AUDIT_ARCH_I386,
	lib.ArchARM64: unix.AUDIT_ARCH_AARCH64, lib.ArchARM: unix.AUDIT_ARCH_ARM,
}
