package e2e

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/faultpoint"
	"github.com/seed-9a14075a/cri-server/test/images"
)

// killServer lets cri-server die at p, during s, and a container end while it is away; then everything that was
// acknowledged is there, the end is known, and s succeeds when it is repeated.
func (m *matrix) killServer(l *life, s move, p place) {
	when := fmt.Sprintf("%s, killed at %s %d", s.name, p.point, p.n)
	ending, pid := m.ending()
	m.strike(p, faultpoint.Kill)
	err := s.call()
	if !m.fired(p, faultpoint.Kill) {
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
	if syscall.Kill(pid, 0) == nil {
		m.t.Fatalf("%s: process %d does not end", when, pid)
	}
	begin := time.Now()
	if serr := m.StartServer(m.ctx); serr != nil {
		m.t.Fatalf("%s: %v", when, serr)
	}
	m.down = max(m.down, time.Since(begin))
	m.lostThings(l, when)
	if (s.name == "pull" || s.name == "import") && !m.hasImage(l.image) {
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
	pid = m.pidOf(id)
	m.eventually("the container has its trap: before that SIGUSR1 is nothing to the pid 1 of a namespace", func() bool {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		_, rest, _ := strings.Cut(string(b), "SigCgt:")
		mask, _, _ := strings.Cut(strings.TrimSpace(rest), "\n")
		caught, err := strconv.ParseUint(mask, 16, 64)
		return err == nil && caught&(1<<(syscall.SIGUSR1-1)) != 0
	})
	return id, pid
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

// TestKillMatrix kills cri-server at each recorded step of a pod's life.
func TestKillMatrix(t *testing.T) {
	m := newMatrix(t, "cri-server")
	for p := range m.missed {
		t.Errorf("no life passes the point %s", p)
	}
	first, stride := 3, 12
	if full {
		first, stride = 0, 1
	}
	m.lead(first, stride, m.killServer)
	t.Logf("kill matrix of cri-server: %v", m.tally)
}
