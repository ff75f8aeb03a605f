package native

import (
	"fmt"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

var rlimits = map[string]int{
	"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_CPU": unix.RLIMIT_CPU, "RLIMIT_DATA": unix.RLIMIT_DATA,
	"RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS, "RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK,
	"RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE, "RLIMIT_NOFILE": unix.RLIMIT_NOFILE,
	"RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_RSS": unix.RLIMIT_RSS, "RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO,
	"RLIMIT_RTTIME": unix.RLIMIT_RTTIME, "RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING, "RLIMIT_STACK": unix.RLIMIT_STACK,
}

var policies = map[specs.LinuxSchedulerPolicy]uint32{"": unix.SCHED_NORMAL, specs.SchedOther: unix.SCHED_NORMAL,
	specs.SchedFIFO: unix.SCHED_FIFO, specs.SchedRR: unix.SCHED_RR, specs.SchedBatch: unix.SCHED_BATCH,
	specs.SchedIdle: unix.SCHED_IDLE, specs.SchedDeadline: unix.SCHED_DEADLINE}

var schedFlags = map[specs.LinuxSchedulerFlag]uint64{specs.SchedFlagResetOnFork: unix.SCHED_FLAG_RESET_ON_FORK,
	specs.SchedFlagReclaim: unix.SCHED_FLAG_RECLAIM, specs.SchedFlagDLOverrun: unix.SCHED_FLAG_DL_OVERRUN,
	specs.SchedFlagKeepPolicy: unix.SCHED_FLAG_KEEP_POLICY, specs.SchedFlagKeepParams: unix.SCHED_FLAG_KEEP_PARAMS,
	specs.SchedFlagUtilClampMin: unix.SCHED_FLAG_UTIL_CLAMP_MIN, specs.SchedFlagUtilClampMax: unix.SCHED_FLAG_UTIL_CLAMP_MAX}

var ioClasses = map[specs.IOPriorityClass]int{specs.IOPRIO_CLASS_RT: 1, specs.IOPRIO_CLASS_BE: 2, specs.IOPRIO_CLASS_IDLE: 3}

// personalities are the execution domains of personality(2).
var personalities = map[specs.LinuxPersonalityDomain]uint32{specs.PerLinux: 0, specs.PerLinux32: 8}

var memoryModes = map[specs.MemoryPolicyModeType]uint32{specs.MpolDefault: unix.MPOL_DEFAULT, specs.MpolPreferred: unix.MPOL_PREFERRED,
	specs.MpolBind: unix.MPOL_BIND, specs.MpolInterleave: unix.MPOL_INTERLEAVE, specs.MpolLocal: unix.MPOL_LOCAL,
	specs.MpolPreferredMany: unix.MPOL_PREFERRED_MANY, specs.MpolWeightedInterleave: unix.MPOL_WEIGHTED_INTERLEAVE}

var memoryFlags = map[specs.MemoryPolicyFlagType]uint32{specs.MpolFNumaBalancing: unix.MPOL_F_NUMA_BALANCING,
	specs.MpolFRelativeNodes: unix.MPOL_F_RELATIVE_NODES, specs.MpolFStaticNodes: unix.MPOL_F_STATIC_NODES}

func (s *stub) setOOMScoreAdj(adj *int) error {
	if adj == nil {
		return nil
	}
	if err := s.write("oom_score_adj", strconv.Itoa(*adj)); err != nil {
		return fmt.Errorf("process.oomScoreAdj %d: %w", *adj, classify(err))
	}
	return nil
}

// limit sets what the kernel lets a parent set: resource limits, scheduling, I/O priority. It comes last, since it may
// hinder the stub.
func (s *stub) limit(p *specs.Process) error {
	if sc := p.Scheduler; sc != nil {
		attr := &unix.SchedAttr{Policy: policies[sc.Policy], Nice: sc.Nice, Priority: uint32(sc.Priority),
			Runtime: sc.Runtime, Deadline: sc.Deadline, Period: sc.Period}
		for _, f := range sc.Flags {
			attr.Flags |= schedFlags[f]
		}
		if err := unix.SchedSetAttr(s.child.Pid(), attr, 0); err != nil {
			return fmt.Errorf("process.scheduler: %w", classify(err))
		}
	}
	if io := p.IOPriority; io != nil {
		const whoProcess, classShift = 1, 13 // ioprio_set(2)
		prio := ioClasses[io.Class]<<classShift | io.Priority
		_, _, errno := unix.Syscall(unix.SYS_IOPRIO_SET, whoProcess, uintptr(s.child.Pid()), uintptr(prio))
		if errno != 0 {
			return fmt.Errorf("process.ioPriority: %w", classify(errno))
		}
	}
	for _, r := range p.Rlimits {
		lim := &unix.Rlimit{Cur: r.Soft, Max: r.Hard}
		if err := unix.Prlimit(s.child.Pid(), rlimits[r.Type], lim, nil); err != nil {
			return fmt.Errorf("process.rlimits: %s %d:%d: %w", r.Type, r.Soft, r.Hard, classify(err))
		}
	}
	return nil
}

// setAffinity binds a process (0: this thread) to a list of CPUs such as "0-3,7"; "" leaves it.
func setAffinity(pid int, list string) error {
	if list == "" {
		return nil
	}
	var set unix.CPUSet
	err := eachInRanges(list, len(set)*64, func(n int) { set.Set(n) })
	if err != nil {
		return err
	}
	return unix.SchedSetaffinity(pid, &set)
}

// eachInRanges calls f for each number of a list such as "0-3,7"; numbers must be below limit.
func eachInRanges(list string, limit int, f func(int)) error {
	for part := range strings.SplitSeq(strings.TrimSpace(list), ",") {
		lo, hi, isRange := strings.Cut(part, "-")
		if !isRange {
			hi = lo
		}
		a, err := strconv.Atoi(strings.TrimSpace(lo))
		b, err2 := strconv.Atoi(strings.TrimSpace(hi))
		if err != nil || err2 != nil || a < 0 || b < a || b >= limit {
			return invalid("%q is not a list of numbers below %d", list, limit)
		}
		for ; a <= b; a++ {
			f(a)
		}
	}
	return nil
}

// policy sets the NUMA memory policy, which execve keeps (set_mempolicy(2)).
func (id *identity) policy(m *specs.LinuxMemoryPolicy) error {
	if m == nil {
		return nil
	}
	id.flags |= flagMemPolicy
	id.memPolicy = memoryModes[m.Mode]
	for _, f := range m.Flags {
		id.memPolicy |= memoryFlags[f]
	}
	if m.Nodes == "" {
		return nil
	}
	err := eachInRanges(m.Nodes, len(id.nodes)*64, func(n int) { id.nodes[n/64] |= 1 << (n % 64) })
	if err != nil {
		return fmt.Errorf("linux.memoryPolicy.nodes: %w", err)
	}
	return nil
}
