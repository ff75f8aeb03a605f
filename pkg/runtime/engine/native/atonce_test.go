package native

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

// A session that can't be made says at which step, and leaves no process.
func TestAtOnceFails(t *testing.T) {
	b := newBed(t)
	ct := b.running(t, newSpec())
	for name, tt := range map[string]struct {
		change func(p *specs.Process)
		want   string
	}{
		"limit": {func(p *specs.Process) {
			p.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CORE"}, {Type: "RLIMIT_NOFILE", Soft: 1 << 40, Hard: 1 << 40}}
		}, "process.rlimits: RLIMIT_NOFILE 1099511627776:1099511627776: "},
		"cwd":     {func(p *specs.Process) { p.Cwd = "/none" }, "process.cwd: "},
		"program": {func(p *specs.Process) { p.Args = []string{"/none"} }, "execve /none: "},
	} {
		t.Run(name, func(t *testing.T) {
			p := newSpec("/bin/true").Process
			tt.change(p)
			_, err := ct.Exec(testContext(t), &engine.ExecConfig{Process: p})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want %s", err, tt.want)
			}
		})
	}
	many := newSpec("/bin/true").Process
	for range maxLimits + 1 {
		many.Rlimits = append(many.Rlimits, specs.POSIXRlimit{Type: "RLIMIT_CORE"})
	}
	if _, err := ct.Exec(testContext(t), &engine.ExecConfig{Process: many}); err != nil {
		t.Errorf("%d limits: %v", len(many.Rlimits), err)
	}
	p := newSpec().Process
	score := 500
	p.OOMScoreAdj, p.Rlimits = &score, []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 77, Hard: 78}}
	if lines := execSh(t, ct, p, "cat /proc/self/oom_score_adj; ulimit -Sn; ulimit -Hn"); strings.Join(lines[:3], " ") != "500 77 78" {
		t.Errorf("oom_score_adj and limits: %q", lines)
	}
}

// TestRunRefuses sends opRun as this package never does.
func TestRunRefuses(t *testing.T) {
	b := newBed(t)
	id, err := newIdentity(newSpec("/bin/true").Process, make([]byte, 8), nil)
	if err != nil {
		t.Fatal(err)
	}
	run := func(flags, limits uint32, rest []byte) []byte {
		p := binary.NativeEndian.AppendUint32(nil, flags)
		p = binary.NativeEndian.AppendUint32(p, limits)
		return append(append(p, make([]byte, 16)...), rest...)
	}
	whole := id.payload()
	for name, tt := range map[string]struct {
		payload []byte
		errno   unix.Errno
		step    int
	}{
		"nothing":           {nil, unix.EINVAL, stepOrder},
		"half a head":       {run(0, 0, nil)[:20], unix.EINVAL, stepOrder},
		"no identity":       {run(0, 0, nil), unix.EINVAL, stepOrder},
		"half an identity":  {run(0, 0, whole[:100]), unix.EINVAL, stepOrder},
		"limits missing":    {run(0, 64, whole[:100]), unix.EINVAL, stepOrder},
		"too many limits":   {run(0, 1<<31, whole), unix.EINVAL, stepOrder},
		"no such limit":     {run(0, 1, append([]byte{99, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0}, whole...)), unix.EINVAL, stepLimit},
		"score without dir": {run(runScore, 0, whole), unix.EBADF, stepScore},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := b.fork(launch{})
			if err != nil {
				t.Fatal(err)
			}
			defer s.kill()
			if err := s.settled(); err != nil {
				t.Fatal(err)
			}
			if val, _, err := s.call(opRun, 0, tt.payload); !errors.Is(err, tt.errno) || val != tt.step {
				t.Errorf("step %d, %v", val, err)
			}
			if st, err := s.child.Wait(testContext(t)); err != nil || st.Code() != 127 {
				t.Errorf("%v %v", st, err)
			}
		})
	}
}

// A stub whose orders can't be given does not wait for them.
func TestAtOnceTooLarge(t *testing.T) {
	b := newBed(t)
	ct := b.running(t, newSpec())
	p := newSpec("/bin/true").Process
	for range 17 {
		p.Env = append(p.Env, "A="+strings.Repeat("x", 1<<20))
	}
	if _, err := ct.Exec(testContext(t), &engine.ExecConfig{Process: p}); !errors.Is(err, unix.E2BIG) {
		t.Errorf("%v", err)
	}
}

// A nursery that was killed may have forked before: what then has its orders obeys, and must not get a double.
func TestNurseryDiesForking(t *testing.T) {
	b := newBed(t)
	born := binary.NativeEndian.AppendUint32(nil, 0) // a stub's word that it is where it belongs
	born = binary.NativeEndian.AppendUint32(born, 1)
	for name, tt := range map[string]struct {
		answers []byte
		atOnce  bool
		unborn  bool
	}{
		"before the fork": {nil, true, true},
		"after the fork":  {born, true, false},
		"step by step":    {nil, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			c, theirs, err := pair()
			if err != nil {
				t.Fatal(err)
			}
			n := &nursery{stub: &stub{}}
			s := &stub{conn: c, engine: b.Engine, pidfd: -1, launch: launch{atOnce: tt.atOnce}}
			n.expect(s)
			n.died(n.stub)
			if _, err := unix.Write(theirs, tt.answers); (err == nil) != tt.atOnce {
				t.Errorf("an answer after the nursery's death: %v", err)
			}
			unix.Close(theirs)
			_, err = (&forking{engine: b.Engine, stub: s, forked: b.reaper.Expect()}).take()
			if err == nil || errors.Is(err, errStubDied) != tt.unborn {
				t.Errorf("%v", err)
			}
		})
	}
}

// A nursery that dies with the order to fork leaves it to the next.
func TestNurseryDiesWithOrder(t *testing.T) {
	b := newBed(t)
	ct := b.running(t, newSpec())
	pidfd, err := unix.PidfdOpen(b.nursery.stub.child.Pid(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pidfd)
	if err := unix.PidfdSendSignal(pidfd, unix.SIGSTOP, nil, 0); err != nil {
		t.Fatal(err)
	}
	told := make(chan error)
	go func() {
		e, err := ct.Exec(testContext(t), &engine.ExecConfig{Process: newSpec("/bin/true").Process})
		if err == nil {
			_, err = e.Child().Wait(testContext(t))
		}
		told <- err
	}()
	for ordered := 0; ordered == 0; runtime.Gosched() {
		b.nursery.telling.Lock()
		ordered = len(b.nursery.ordered)
		b.nursery.telling.Unlock()
	}
	if err := unix.PidfdSendSignal(pidfd, unix.SIGKILL, nil, 0); err != nil {
		t.Error(err)
	}
	if err := <-told; err != nil {
		t.Error(err)
	}
}

// A session that can't come to its end, here because the cgroup is frozen, is given up at its deadline and leaves nothing.
func TestAtOnceGivenUp(t *testing.T) {
	b := newBed(t)
	cg := testCgroup(t, fmt.Sprintf("frozen-%d", os.Getpid()))
	if cg.Unified == "" {
		t.Skip("needs cgroup2")
	}
	config := b.config(t, newSpec("/bin/sleep", "600"))
	config.Cgroup = cg
	ct := b.create(t, config)
	if err := ct.Start(testContext(t)); err != nil {
		t.Fatal(err)
	}
	freeze := func(to string) {
		t.Helper()
		if err := os.WriteFile(cg.Unified+"/cgroup.freeze", []byte(to), 0); err != nil {
			t.Fatal(err)
		}
	}
	freeze("1")
	defer freeze("0")
	ctx, cancel := context.WithTimeout(testContext(t), 3*glance)
	defer cancel()
	x := &engine.ExecConfig{Process: newSpec("/bin/true").Process, Cgroup: cg}
	if _, err := ct.Exec(ctx, x); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("exec: %v", err)
	}
	procs, err := os.ReadFile(cg.Unified + "/cgroup.procs")
	if err != nil || string(procs) != fmt.Sprintln(ct.Process().Pid()) {
		t.Errorf("left: %q %v", procs, err)
	}
	freeze("0")
	e, err := ct.Exec(testContext(t), x)
	if err != nil {
		t.Fatal(err)
	}
	if st, err := e.Child().Wait(testContext(t)); err != nil || st.Code() != 0 {
		t.Errorf("the next: %+v %v", st, err)
	}
}
