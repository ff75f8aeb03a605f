package main

import (
	"math"
	"slices"
	"strings"
	"testing"
)

func TestGoals(t *testing.T) {
	r := &results{Floor: &floor{}}
	r.Floor.CPU.add(1)
	for name, start := range map[string]float64{"cri-server": 20, oursTarget: 4, reference: 120, "containerd + crun": 90, "CRI-O + crun": 50} {
		x := r.target(name)
		record(&x.Calls, podStart, start)
		record(&x.CPU, podStart, start)
		x.Parallel = []parallel{{Workers: 8}}
		x.Parallel[0].Start.add(1000 / start)
	}
	us := r.have(oursTarget)
	us.Restarts = []restart{{0, 10}, {100, 501}}
	us.Growth = []growth{{Pods: 20, P50: 4}, {Pods: 500, P50: 5}}
	got := map[string]bool{}
	for _, g := range r.goals(us) {
		if !math.IsNaN(g.measured) {
			got[g.what] = g.met()
		}
	}
	for what, want := range map[string]bool{
		"pod start, p50: ≤ 1/25 of containerd + runc":              true,
		"pod start, p50: ≤ 1/15 of the best peer":                  false,
		"pods started per s, 8 at a time: ≥ 15x containerd + runc": true,
		"pods started per s, 8 at a time: ≥ 8x the best peer":      true,
		"serving after a restart with 100 pods: ≤ 500 ms":          false,
		"pod start with 500 pods there: ≤ 1.5x that with none":     true,
		"CPU of a pod start: ≤ 2x the floor's":                     false,
	} {
		if met, ok := got[what]; !ok || met != want {
			t.Errorf("%s: met %v, measured %v", what, met, ok)
		}
		delete(got, what)
	}
	if len(got) > 0 {
		t.Errorf("of what was not measured: %v", got)
	}
	s := goalsSection(r)
	for _, want := range []string{"| 4.00 ms; CRI-O + crun 50.0: 1/12.5 | 1.20 | **missed** | 20.0 ms; CRI-O + crun 50.0: 1/2.50 | 6.00 | **missed** |"} {
		if !strings.Contains(s, want) {
			t.Errorf("%q is not in:\n%s", want, s)
		}
	}
	if s := goalsSection(&results{}); s != "" {
		t.Errorf("of no run: %q", s)
	}
}

func TestTraces(t *testing.T) {
	const out = `File: x
Type: delay
-----------+-------------------------------------------------------
   bytes:  12kB
   11.50ms   sync.(*Mutex).Unlock (inline)
             github.com/seed-9a14075a/cri-server/pkg/network.(*CNI).add
             github.com/seed-9a14075a/cri-server/pkg/sandbox.(*Sandboxes).run
-----------+-------------------------------------------------------
         2ms   runtime.selectgo
-----------+-------------------------------------------------------
         1ms   runtime.chanrecv
             github.com/seed-9a14075a/cri-server/pkg/network.(*CNI).add
-----------+-------------------------------------------------------
`
	list := parseTraces([]byte(out))
	if len(list) != 3 || list[1].own() != "" || !list[0].has("(*Sandboxes)") || list[2].has("(*Sandboxes)") {
		t.Errorf("%+v", list)
	}
	if got := top(list, trace.own, 2, 5, 0); !slices.Equal(got, []share{{"pkg/network.(*CNI).add", 25}}) {
		t.Errorf("%+v", got)
	}
	if got := parseTraces([]byte("nonsense\n-----------+\n\n-----------+\nx y\n")); len(got) != 0 {
		t.Errorf("of nonsense: %+v", got)
	}
}

func TestPerf(t *testing.T) {
	const out = "# a;b;c;d\n\n    60.00%;cri-server;[kernel.kallsyms];[k] do_mkdirat\n 30.00%;12;[unknown];[.] 0x1\n 10.00%;cri-monitor;x;[k] copy_mm\n nonsense\n"
	list := parsePerf(out)
	if got := top(list, func(t trace) string { return t.stack[0] }, 1, 5, 0); !slices.Equal(got, []share{{"cri-server, kernel", 60}, {"cri-monitor, user", 30}, {"cri-monitor, kernel", 10}}) {
		t.Errorf("%+v", got)
	}
	if got := top(list, func(t trace) string { return t.stack[1] }, 1, 1, 0); !slices.Equal(got, []share{{"do_mkdirat", 60}}) {
		t.Errorf("%+v", got)
	}
}

func TestMethodCalls(t *testing.T) {
	const out = `recvmsg(10, {msg_name=NULL, msg_namelen=0, msg_iov=[{iov_base="l\1"..., iov_len=24}], msg_iovlen=1, msg_controllen=0, msg_flags=MSG_CMSG_CLOEXEC}, MSG_DONTWAIT) = 24
recvmsg(10, {msg_name=NULL, msg_namelen=0, msg_iov=[{iov_base="/o"..., iov_len=536}], msg_iovlen=1, msg_controllen=0, msg_flags=0}, MSG_DONTWAIT) = 536
recvmsg(42, {msg_name=NULL, msg_namelen=0, msg_iov=[{iov_base="l\4"..., iov_len=24}], msg_iovlen=1, msg_controllen=0, msg_flags=0}, MSG_DONTWAIT) = 24
recvmsg(42, {msg_name=NULL, msg_namelen=0, msg_iov=[{iov_base="l\1", iov_len=24}], msg_iovlen=1, msg_controllen=0, msg_flags=0}, MSG_DONTWAIT) = 2
recvmsg(10, {msg_namelen=0}, MSG_DONTWAIT) = -1 EAGAIN (Resource temporarily unavailable)
`
	if n := methodCalls(out); n != 2 {
		t.Errorf("%d calls", n)
	}
}
