package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/faultpoint"
	"github.com/seed-9a14075a/cri-server/test/images"
	"github.com/seed-9a14075a/cri-server/test/testnode"
)

// full: every place of every call, with every error; a plain run takes some.
var full = os.Getenv("CRI_SERVER_MATRIX") == "full"

// place is a hit of a fault point within a call.
type place struct {
	point string
	n     int
	after []faultpoint.Rule // what must happen before, for a point that an undisturbed call does not pass
}

// places are the hits of a call, in order.
func places(hits []string) []place {
	var all []place
	count := map[string]int{}
	for _, h := range hits {
		count[h]++
		all = append(all, place{point: h, n: count[h]})
	}
	return all
}

// matrix leads pods' lives and lets something happen at each place of each call.
type matrix struct {
	*fixture
	program string
	witness *life
	places  map[string][]place // by step
	missed  map[string]bool    // points that no life has passed
	tally
	store   []string // the image store's files without the image of the lives
	archive string   // of the image of the lives
}

// tally are the figures.
type tally struct {
	tried, notHit, lost, leaked, failed, retries int
	down                                         time.Duration // longest from the restart to the first answer
}

func (c tally) String() string {
	return fmt.Sprintf("%d tried (%d more not reached), %d lost, %d leaked, %d retries failed, %d retries needed, longest start %v",
		c.tried, c.notHit, c.lost, c.leaked, c.failed, c.retries, c.down.Round(time.Millisecond))
}

func newMatrix(t *testing.T, program string) *matrix {
	if _, err := os.Stat("../../.cache/faults/cri-server"); err != nil {
		t.Fatalf("make faults builds the programs for this test: %v", err)
	}
	m := withWitness(t, testnode.Options{Faults: true})
	m.program = program
	m.record()
	return m
}

// withWitness brings up a node with a pod that nothing may touch.
func withWitness(t *testing.T, o testnode.Options) *matrix {
	m := &matrix{fixture: start(t, o), places: map[string][]place{}}
	ctx, cancel := context.WithTimeout(context.Background(), testns.Patience(150*time.Minute))
	t.Cleanup(cancel)
	m.ctx = ctx
	m.pull(images.Zstd)
	m.witness = m.newLife("witness")
	m.witness.config.PortMappings = nil
	m.witness.image = registry + images.Zstd
	m.witness.run0(t)
	before := m.before
	m.before, m.store = testnode.Take(), m.stored()
	t.Cleanup(func() { m.before = before }) // of which the fixture's own look is
	return m
}

// run0 runs the witness: a pod with a container, which must be there whatever happens.
func (l *life) run0(t *testing.T) {
	t.Helper()
	if err := l.run(); err != nil {
		t.Fatal(err)
	}
	r, err := l.f.Runtime.CreateContainer(l.f.ctx, &cri.CreateContainerRequest{PodSandboxId: l.pod, SandboxConfig: l.config,
		Config: containerConfig("w", images.Zstd, "sh", "-c", endsWith42)})
	if err != nil {
		t.Fatal(err)
	}
	l.ctr = r.ContainerId
	l.f.ids = append(l.f.ids, l.ctr)
	if err := l.start(); err != nil {
		t.Fatal(err)
	}
}

// record leads an undisturbed life and notes the places of each call.
func (m *matrix) record() {
	l := m.newLife("undisturbed")
	m.missed = map[string]bool{}
	for _, p := range faultpoint.Points() {
		m.missed[p] = true
	}
	for _, s := range l.steps() {
		m.forgetHits()
		if err := s.call(); err != nil {
			m.t.Fatalf("%s, undisturbed: %v", s.name, err)
		}
		m.settled()
		if s.name == "run" {
			defer m.recordRollback()
		}
		if s.name == "pull" {
			if err := l.export(); err != nil {
				m.t.Fatalf("export: %v", err)
			}
			m.archive = l.archive
		}
		for _, program := range []string{"cri-server", "cri-monitor"} {
			hits, err := faultpoint.Hits(m.FaultDir(), program)
			if err != nil {
				m.t.Fatal(err)
			}
			for _, h := range hits {
				delete(m.missed, h)
			}
			if program == m.program {
				m.places[s.name] = places(hits)
			}
		}
	}
}

// recordRollback notes the places of an attachment that fails.
func (m *matrix) recordRollback() {
	if m.program != "cri-server" {
		delete(m.missed, rollback)
		return
	}
	before := faultpoint.Rule{Point: "network.attach.added", N: 1, Action: "EIO"}
	m.arm(before)
	l := m.newLife("rollback")
	if err := l.run(); err == nil {
		m.t.Fatal("an attachment that fails is no error")
	}
	m.settled()
	hits, err := faultpoint.Hits(m.FaultDir(), m.program)
	if err != nil {
		m.t.Fatal(err)
	}
	m.arm()
	for _, p := range places(hits) {
		if p.point == rollback {
			delete(m.missed, rollback)
			p.after = []faultpoint.Rule{before}
			m.places["run"] = append(m.places["run"], p)
		}
	}
}

const rollback = "network.rollback"

// settled waits until no more points are passed: a call may go on behind its answer.
func (m *matrix) settled() {
	for last, same := -1, 0; same < 3; time.Sleep(3 * time.Millisecond) {
		hits, _ := faultpoint.Hits(m.FaultDir(), m.program)
		if len(hits) == last {
			same++
		} else {
			last, same = len(hits), 0
		}
	}
}

func (m *matrix) forgetHits() {
	for _, program := range []string{"cri-server", "cri-monitor"} {
		_ = os.Remove(filepath.Join(m.FaultDir(), program+".hits"))
		_ = os.Remove(filepath.Join(m.FaultDir(), program+".fired"))
	}
}

func (m *matrix) arm(rules ...faultpoint.Rule) {
	m.t.Helper()
	m.forgetHits()
	if err := faultpoint.Arm(m.FaultDir(), m.program, rules...); err != nil {
		m.t.Fatal(err)
	}
}

// strike arms what is to happen at a place.
func (m *matrix) strike(p place, a faultpoint.Action) {
	m.t.Helper()
	m.arm(append(slices.Clone(p.after), faultpoint.Rule{Point: p.point, N: p.n, Action: a})...)
}

// fired tells whether the rule of a place has fired, now or in a moment, and notes it.
func (m *matrix) fired(p place, a faultpoint.Action) bool {
	m.settled()
	fired, _ := faultpoint.Fired(m.FaultDir(), m.program)
	if !slices.ContainsFunc(fired, func(f string) bool { return strings.HasPrefix(f, p.point+" ") && strings.HasSuffix(f, " "+string(a)) }) {
		return false
	}
	m.note(p.point, a)
	return true
}

// note writes a line for what has come of it all to the file that make test-faults reads at its end (test/torture/points).
func (m *matrix) note(point string, a faultpoint.Action) {
	name := os.Getenv("CRI_SERVER_POINTS")
	if name == "" {
		return
	}
	f, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err == nil {
		_, err = fmt.Fprintln(f, m.program, point, a)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		m.t.Error(err)
	}
}

// longest is how many lives it takes to come to each place of each call, one of each call in one life.
func (m *matrix) longest() int {
	n := 0
	for _, p := range m.places {
		n = max(n, len(p))
	}
	return n
}

// disturb does something at a place of a call.
type disturb func(l *life, s move, p place)

// lead leads lives with one place of each call disturbed, every stride-th of all.
func (m *matrix) lead(first, stride int, d disturb) {
	for i := first; i < m.longest(); i += stride {
		l := m.newLife(fmt.Sprintf("life-%d", i))
		l.archive = m.archive
		for _, s := range l.steps() {
			if i < len(m.places[s.name]) {
				d(l, s, m.places[s.name][i])
			} else if _, err := m.again(s); err != nil {
				m.failed++
				m.t.Errorf("life %d: %v", i, err)
				return
			}
			m.lostThings(l, fmt.Sprintf("life %d, after %s", i, s.name))
		}
		m.leaks(fmt.Sprintf("life %d", i))
	}
}

// storeLeaks are the files that the image store has too much, but for those of a snapshot. It removes behind the calls.
func (m *matrix) storeLeaks(but string) (left []string) {
	for range 250 {
		left = slices.DeleteFunc(m.stored(), func(s string) bool {
			return slices.Contains(m.store, s) || but != "" && strings.Contains(s, but)
		})
		if len(left) == 0 {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	return left
}

func (m *matrix) lostThings(l *life, when string) {
	for _, w := range append(l.lost(), m.witness.lost()...) {
		m.lost++
		m.t.Errorf("%s: %s", when, w)
	}
}

// leaks looks for what a life has left.
func (m *matrix) leaks(when string) {
	known := map[string]bool{}
	for id := range m.witness.acked {
		known[id] = true
	}
	gone := slices.DeleteFunc(slices.Clone(m.ids), func(id string) bool { return known[id] })
	left := m.Leaks(m.before, gone, m.witness.pod, m.witness.ctr)
	left = slices.DeleteFunc(left, func(l string) bool { // other nodes of this machine come and go meanwhile
		return strings.HasPrefix(l, "cgroup ") && !strings.Contains(l, testns.CgroupParent())
	})
	left = append(left, m.storeLeaks("")...)
	m.leaked += len(left)
	for _, s := range left[:min(len(left), 20)] {
		m.t.Errorf("%s: left: %s", when, s)
	}
	m.ids = slices.Collect(func(yield func(string) bool) { // the others were looked for
		for id := range m.witness.acked {
			if !yield(id) {
				return
			}
		}
	})
}
