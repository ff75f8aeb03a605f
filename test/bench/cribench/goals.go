package main

import (
	"fmt"
	"math"
	"strings"
)

// goal is what the project wants of one figure, and what a run says of it.
type goal struct {
	what     string
	limit    float64 // measured must be at most this, or at least
	atLeast  bool
	measured float64 // NaN: not in this run
	of       string  // what measured is made of
}

// met tells whether the figure is as wanted.
func (g goal) met() bool {
	if g.atLeast {
		return g.measured >= g.limit
	}
	return g.measured <= g.limit
}

// Targets that goals are about: cri-server as it comes, and the peer that most have.
const (
	oursTarget   = "cri-server (default CNI)"
	reference    = "containerd + runc"
	parallelGoal = 8    // pods at a time
	listedGoal   = 1000 // containers
	restartGoal  = 100  // pods
)

// have returns a target's result; nil if the run has not got it.
func (r *results) have(name string) *result {
	for _, t := range r.Targets {
		if t.Target == name {
			return t
		}
	}
	return nil
}

// peer tells whether a target is another runtime.
func peer(name string) bool { return !strings.HasPrefix(name, "cri-server") }

// best returns the smallest, or the largest, value of the peers whose names hold word, and whose it is.
func (r *results) best(word string, largest bool, value func(t *result) float64) (float64, string) {
	found, whose := math.NaN(), ""
	for _, t := range r.Targets {
		if v := value(t); peer(t.Target) && strings.Contains(t.Target, word) && !math.IsNaN(v) && (math.IsNaN(found) || v > found == largest && v != found) {
			found, whose = v, t.Target
		}
	}
	return found, whose
}

func pods8(t *result) float64 {
	for i := range t.Parallel {
		if t.Parallel[i].Workers == parallelGoal {
			return t.Parallel[i].Start.mean()
		}
	}
	return math.NaN()
}

// against is a goal about a figure of ours by that of others.
func (r *results) against(what string, us *result, others string, limit float64, largest bool, unit string, value func(t *result) float64) goal {
	theirs, whose := r.best(others, largest, value)
	g := goal{what: what, limit: limit, atLeast: largest, measured: value(us) / theirs}
	if !largest {
		g.limit = 1 / limit
	}
	if !math.IsNaN(g.measured) {
		ratio := "1/" + figure(theirs/value(us))
		if largest {
			ratio = figure(g.measured) + "x"
		}
		g.of = fmt.Sprintf("%s %s; %s %s: %s", figure(value(us)), unit, whose, figure(theirs), ratio)
	}
	return g
}

// goals are the project's. us is whose figures are looked at.
func (r *results) goals(us *result) []goal {
	p50 := func(call string) func(t *result) float64 {
		return func(t *result) float64 { return t.Calls[call].at(50) }
	}
	list := []goal{
		r.against("pod start, p50: ≤ 1/25 of containerd + runc", us, reference, 25, false, "ms", p50(podStart)),
		r.against("pod start, p50: ≤ 1/15 of the best peer", us, "", 15, false, "ms", p50(podStart)),
		r.against("pods started per s, 8 at a time: ≥ 15x containerd + runc", us, reference, 15, true, "per s", pods8),
		r.against("pods started per s, 8 at a time: ≥ 8x the best peer", us, "", 8, true, "per s", pods8),
		r.against("ExecSync, p50: ≤ 1/25 of containerd + runc", us, reference, 25, false, "ms", p50("ExecSync")),
		r.against("ExecSync, p50: ≤ 1/9 of the best with crun", us, "crun", 9, false, "ms", p50("ExecSync")),
		r.against("pod stop and removal, p50: ≤ 1/10 of containerd + runc", us, reference, 10, false, "ms", p50(podEnd)),
		r.against("pod stop and removal, p50: ≤ 1/10 of the best peer", us, "", 10, false, "ms", p50(podEnd)),
	}
	one := func(what string, limit, measured float64, atLeast bool, unit, more string) {
		g := goal{what: what, limit: limit, atLeast: atLeast, measured: measured}
		if !math.IsNaN(measured) {
			g.of = figure(measured) + " " + unit + more
		}
		list = append(list, g)
	}
	perPod, grown, kept := math.NaN(), math.NaN(), 0
	if n := len(us.Memory); n > 0 {
		perPod, grown, kept = us.Memory[n-1].PerPod, us.Memory[n-1].Growth, us.Memory[n-1].Pods
	}
	with := fmt.Sprintf(", %d pods", kept)
	one("memory of a pod outside the daemon: ≤ 60 KiB Pss", 60, perPod, false, "KiB", with)
	one("memory of a pod in the daemon and the monitor: ≤ 30 KiB Pss", 30, grown, false, "KiB", with)
	for _, c := range []string{"ListContainers", "ListPodSandbox", "ListContainerStats", "ListPodSandboxStats"} {
		limit := 5.0
		if strings.HasSuffix(c, "Stats") {
			limit = 50
		}
		at, n := math.NaN(), 0
		for _, l := range us.Lists {
			if l.Containers >= n {
				at, n = l.Calls[c].at(99), l.Containers
			}
		}
		if n < listedGoal {
			at = math.NaN()
		}
		one(fmt.Sprintf("%s of 1 000 containers, p99: ≤ %g ms", c, limit), limit, at, false, "ms", "")
	}
	log := math.NaN()
	if us.Logs != nil {
		log = us.Logs.MBPerS
	}
	one("log of a container: ≥ 300 MB/s", 300, log, true, "MB/s", "")
	serving := math.NaN()
	for _, x := range us.Restarts {
		if x.Pods == restartGoal {
			serving = x.MS
		}
	}
	one("serving after a restart with 100 pods: ≤ 500 ms", 500, serving, false, "ms", "")
	growth, n := us.growth()
	one("pod start with 500 pods there: ≤ 1.5x that with none", 1.5, growth, false, "x", fmt.Sprintf(", %d pods", n))
	cpu := math.NaN()
	if r.Floor != nil {
		cpu = us.CPU[podStart].mean() / r.Floor.CPU.mean()
	}
	one("CPU of a pod start: ≤ 2x the floor's", 2, cpu, false, "x", "")
	return list
}

// growth is how much longer the last pods took to start than the first, and how many there were.
func (t *result) growth() (float64, int) {
	n := len(t.Growth)
	if n < 2 || t.Growth[n-1].Pods < 500 {
		return math.NaN(), 0
	}
	return t.Growth[n-1].P50 / t.Growth[0].P50, t.Growth[n-1].Pods
}

// goalsSection is the page's part about them: of cri-server as it comes, and with the peers' CNI plugins; empty where there is no
// run of the first.
func goalsSection(r *results) string {
	us := r.have(oursTarget)
	if us == nil {
		return ""
	}
	plain := r.have("cri-server")
	var s strings.Builder
	s.WriteString("\n## What was to be reached\n\nBy cri-server with its default, CNI plugins in process; and, beside it, with the plugin binaries that the peers run. " +
		"Measured by limit: at most 1.00 is met.\n\n| goal | measured | by limit | | with plugin binaries | by limit | |\n|---|---|--:|---|---|--:|---|\n")
	var others []goal
	if plain != nil {
		others = r.goals(plain)
	}
	missed := 0
	for i, g := range r.goals(us) {
		if math.IsNaN(g.measured) {
			continue
		}
		if !g.met() {
			missed++
		}
		fmt.Fprintf(&s, "| %s | %s |", g.what, g.row())
		if i < len(others) && !math.IsNaN(others[i].measured) {
			fmt.Fprintf(&s, " %s |\n", others[i].row())
		} else {
			s.WriteString(" – | – | – |\n")
		}
	}
	if missed > 0 && us.Profiles != nil {
		s.WriteString("\nWhat is missed is in the profile of a pod start below: where its time and its CPU go.\n")
	}
	return s.String()
}

// row is the figure, by the limit, and whether it is met.
func (g goal) row() string {
	by, met := g.measured/g.limit, "met"
	if g.atLeast {
		by = g.limit / g.measured
	}
	if !g.met() {
		met = "**missed**"
	}
	return fmt.Sprintf("%s | %s | %s", g.of, figure(by), met)
}
