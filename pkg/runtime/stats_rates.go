package runtime

import (
	"sync"
	"time"

	"github.com/seed-9a14075a/cri-server/pkg/cgroupdriver"
)

// NanoCores is the CPU usage of a cgroup since it was last asked for under the same name (the first time: since the
// given time, when it was made), in 1e-9 cores.
func (c *Containers) NanoCores(name string, since time.Time, st *cgroupdriver.Stats) uint64 {
	return c.rates.nanoCores(name, since, st)
}

// ForgetRate lets go of what NanoCores keeps for a name.
func (c *Containers) ForgetRate(name string) { c.rates.forget(name) }

// minRateInterval is the shortest time over which a rate is taken; kubelet, crictl and others may all ask at once.
const minRateInterval = 500 * time.Millisecond

// rates turns the counters of CPU usage into rates.
type rates struct {
	mu   sync.Mutex
	last map[string]sample
}

type sample struct {
	at    time.Time
	usage uint64
	rate  uint64
}

func (r *rates) nanoCores(id string, since time.Time, st *cgroupdriver.Stats) uint64 {
	if st.CPU == nil {
		return 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last == nil {
		r.last = map[string]sample{}
	}
	old, ok := r.last[id]
	if !ok {
		old.at = since
	}
	now := sample{at: st.Time, usage: st.CPU.Usage}
	d := now.at.Sub(old.at)
	switch {
	case d < minRateInterval && ok:
		return old.rate
	case d < minRateInterval, old.at.IsZero():
	case now.usage >= old.usage:
		now.rate = uint64(float64(now.usage-old.usage) / d.Seconds())
	}
	r.last[id] = now
	return now.rate
}

func (r *rates) forget(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.last, id)
}
