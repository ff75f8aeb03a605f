package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/faultpoint"
)

// errnos are what a busy or broken machine answers.
var errnos = []string{"ENOSPC", "EIO", "EMFILE", "ENOMEM", "EINTR"}

// fail lets p fail with an error, during s. The call may do without, or else says what failed and is no worse for a retry.
func (m *matrix) fail(errno string) disturb {
	return func(l *life, s move, p place) {
		when := fmt.Sprintf("%s, %s at %s %d", s.name, errno, p.point, p.n)
		m.strike(p, faultpoint.Action(errno))
		began := time.Now()
		err := s.call()
		took := time.Since(began)
		fired := m.fired(p, faultpoint.Action(errno))
		m.arm()
		if !fired {
			m.notHit++
		} else {
			m.tried++
		}
		m.lostThings(l, when)
		if err == nil {
			return
		}
		if fired && !strings.Contains(err.Error(), p.point) && !strings.Contains(err.Error(), "meanwhile") {
			m.t.Errorf("%s: the error does not say it: %v", when, err)
		}
		if took > testns.Patience(20*time.Second) {
			m.t.Errorf("%s: the error took %v: %v", when, took, err)
		}
		m.again1(l, s, when)
	}
}

// TestFaultMatrix lets each recorded step of a pod's life fail.
func TestFaultMatrix(t *testing.T) {
	m := newMatrix(t, "cri-server")
	stride := 12
	if full {
		stride = 1
	}
	for i, errno := range errnos {
		first := 0
		if stride > 1 {
			first = 2*i + 1
		}
		m.lead(first, stride, m.fail(errno))
	}
	t.Logf("fault matrix of cri-server: %v", m.tally)
}

// TestMonitorFaultMatrix does so to cri-monitor.
func TestMonitorFaultMatrix(t *testing.T) {
	m := newMatrix(t, "cri-monitor")
	list := errnos[1:2]
	if full {
		list = errnos
	}
	for _, errno := range list {
		m.lead(0, 1, m.fail(errno))
	}
	t.Logf("fault matrix of cri-monitor: %v", m.tally)
}

// killMonitor lets cri-monitor die at p, during s. cri-server starts the next one; the call ends well, or does so when it is
// repeated, and no container notices.
func (m *matrix) killMonitor(l *life, s move, p place) {
	when := fmt.Sprintf("%s, cri-monitor killed at %s %d", s.name, p.point, p.n)
	m.strike(p, faultpoint.Kill)
	err := s.call()
	fired := m.fired(p, faultpoint.Kill)
	m.arm()
	if !fired {
		m.notHit++
	} else {
		m.tried++
	}
	if err != nil {
		m.again1(l, s, when)
	}
	m.lostThings(l, when)
}

// TestMonitorKillMatrix kills cri-monitor at each of its points in a pod's life.
func TestMonitorKillMatrix(t *testing.T) {
	m := newMatrix(t, "cri-monitor")
	m.lead(0, 1, m.killMonitor)
	t.Logf("kill matrix of cri-monitor: %v", m.tally)
}
