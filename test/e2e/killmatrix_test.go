package e2e

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
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
}

// places are the hits of a call, in order.
func places(hits []string) []place {
	var all []place
	count := map[string]int{}
	for _, h := range hits {
		count[h]++
		all = append(all, place{h, count[h]})
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
	store []string // the image store's files without the image of the lives
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
	m := &matrix{fixture: start(t, testnode.Options{Faults: true}), program: program, places: map[string][]place{}}
	ctx, cancel := context.WithTimeout(context.Background(), testns.Patience(55*time.Minute))
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
	m.record()
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

// fired tells whether the armed rule has fired, now or in a moment.
func (m *matrix) fired() bool {
	m.settled()
	fired, _ := faultpoint.Fired(m.FaultDir(), m.program)
	return len(fired) > 0
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

// killServer lets cri-server die at p, during s, and a container end while it is away; then everything that was
// acknowledged is there, the end is known, and s succeeds when it is repeated.
func (m *matrix) killServer(l *life, s move, p place) {
	when := fmt.Sprintf("%s, killed at %s %d", s.name, p.point, p.n)
	ending, pid := m.ending()
	m.arm(faultpoint.Rule{Point: p.point, N: p.n, Action: faultpoint.Kill})
	err := s.call()
	if !m.fired() {
		m.notHit++
		m.arm()
		if err != nil {
			m.again1(l, s, when)
		}
		m.end(ending)
		return
	}
	m.tried++
	ctx, cancel := context.WithTimeout(m.ctx, testns.Patience(10*time.Second))
	defer cancel()
	if derr := m.AwaitDeath(ctx); derr != nil {
		m.t.Fatalf("%s: %v", when, derr)
	}
	m.arm()
	killed := time.Now()
	if kerr := syscall.Kill(pid, syscall.SIGUSR1); kerr != nil {
		m.t.Errorf("%s: %v", when, kerr)
	}
	for deadline := killed.Add(testns.Patience(10 * time.Second)); syscall.Kill(pid, 0) == nil && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	begin := time.Now()
	if serr := m.StartServer(m.ctx); serr != nil {
		m.t.Fatalf("%s: %v", when, serr)
	}
	m.down = max(m.down, time.Since(begin))
	m.lostThings(l, when)
	if s.name == "pull" && !m.hasImage(l.image) {
		if extra := m.storeLeaks(ending); len(extra) > 0 {
			m.leaked += len(extra)
			m.t.Errorf("%s: left in the image store: %q", when, extra)
		}
	}
	m.hasEnded(ending, killed, when)
	if err != nil {
		m.again1(l, s, when)
	}
	m.end(ending)
}

func (m *matrix) again1(_ *life, s move, when string) {
	tries, err := m.again(s)
	m.retries += tries
	if err != nil {
		m.failed++
		m.t.Fatalf("%s: the retry fails: %v", when, err)
	}
}

func (m *matrix) hasImage(name string) bool {
	r, err := m.Image.ImageStatus(m.ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: name}})
	return err == nil && r.Image != nil
}

// ending runs one more container in the witness's pod; it is the one that ends while the server is away.
func (m *matrix) ending() (id string, pid int) {
	c := containerConfig("ending", images.Zstd, "sh", "-c", endsWith42)
	c.LogPath = ""
	id = m.runContainer(m.witness.pod, m.witness.config, c)
	return id, m.pidOf(id)
}

func (m *matrix) end(id string) {
	m.t.Helper()
	if _, err := m.Runtime.RemoveContainer(m.ctx, &cri.RemoveContainerRequest{ContainerId: id}); err != nil {
		m.t.Fatal(err)
	}
}

// hasEnded checks how the container has ended that was told to end after killed.
func (m *matrix) hasEnded(id string, killed time.Time, when string) {
	st, err := m.Runtime.ContainerStatus(m.ctx, &cri.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		m.lost++
		m.t.Errorf("%s: the container that ended meanwhile: %v", when, err)
		return
	}
	s := st.Status
	at := time.Unix(0, s.FinishedAt)
	if s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != 42 || at.Before(killed) || at.After(time.Now()) {
		m.lost++
		m.t.Errorf("%s: the container that ended meanwhile is %v, code %d, finished at %v (told to end at %v)", when, s.State, s.ExitCode, at, killed)
	}
}

// Points that no undisturbed life of a pod comes by, and where they are looked at instead.
var elsewhere = map[string]string{
	"network.rollback":    "an attachment that fails: TestFaultMatrix",
	"image.packed.stored": "an import that does not unpack: pkg/imagestore TestCrashSteps",
}

// TestKillMatrix kills cri-server at each recorded step of a pod's life.
func TestKillMatrix(t *testing.T) {
	m := newMatrix(t, "cri-server")
	for p := range m.missed {
		if elsewhere[p] == "" {
			t.Errorf("no life passes the point %s", p)
		}
	}
	first, stride := 3, 12
	if full {
		first, stride = 0, 1
	}
	m.lead(first, stride, m.killServer)
	t.Logf("kill matrix of cri-server: %v", m.tally)
}
