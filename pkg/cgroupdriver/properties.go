package cgroupdriver

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	sd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
	"github.com/opencontainers/cgroups"
	sdcgroups "github.com/opencontainers/cgroups/systemd"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// infinity is systemd's own for every number.
const infinity = uint64(math.MaxUint64)

// defaultPeriod is the kernel's CPU period in µs.
const defaultPeriod = 100000

// properties says in systemd's words (systemd.resource-control(5)) as much of r as it has words for. systemd must know
// the limits, although they are written to the files as well: it writes its own again on a daemon-reload.
type properties struct {
	v2      bool
	version int
	list    []sd.Property
}

func (p *properties) add(name string, value any) {
	p.list = append(p.list, sd.Property{Name: name, Value: dbus.MakeVariant(value)})
}

// limits appends the limits that r gives. current, nil for a new scope, tells the CPU quota and period in force (µs; a
// quota of -1 is none), since systemd writes both when it gets one.
func (p *properties) limits(r *specs.LinuxResources, current func() (quota int64, period uint64, err error)) error {
	if r == nil {
		return nil
	}
	if c := r.CPU; c != nil {
		if given(c.Shares) && p.v2 {
			p.add("CPUWeight", cgroups.ConvertCPUSharesToCgroupV2Value(*c.Shares))
		} else if given(c.Shares) {
			p.add("CPUShares", *c.Shares)
		}
		if given(c.Quota) || given(c.Period) {
			quota, period := int64(-1), uint64(defaultPeriod)
			if current != nil {
				var err error
				if quota, period, err = current(); err != nil {
					return err
				}
			}
			if given(c.Quota) {
				quota = *c.Quota
			}
			if given(c.Period) {
				period = *c.Period
			}
			p.quota(quota, period)
		}
		if err := p.cpuset(c.Cpus, c.Mems); err != nil {
			return err
		}
	}
	if r.Memory != nil {
		if err := p.memory(r.Memory); err != nil {
			return err
		}
	}
	if r.Pids != nil && given(r.Pids.Limit) {
		p.add("TasksMax", limitOf(*r.Pids.Limit))
	}
	if r.BlockIO != nil && given(r.BlockIO.Weight) {
		if p.v2 {
			p.add("IOWeight", cgroups.ConvertBlkIOToIOWeightValue(*r.BlockIO.Weight))
		} else {
			p.add("BlockIOWeight", uint64(*r.BlockIO.Weight))
		}
	}
	return p.unified(r.Unified)
}

// quota: systemd keeps whole percents of a CPU across a reload; rounded up, so that a container never gets less.
func (p *properties) quota(quota int64, period uint64) {
	if p.version >= 242 {
		p.add("CPUQuotaPeriodUSec", period)
	}
	perSecond := infinity
	if quota > 0 && period > 0 {
		const percent = 10000
		perSecond = (uint64(quota)*1000000/period + percent - 1) / percent * percent
	}
	p.add("CPUQuotaPerSecUSec", perSecond)
}

// cpuset: systemd's properties are for v2 only.
func (p *properties) cpuset(cpus, mems string) error {
	if !p.v2 || p.version < 244 {
		return nil
	}
	for _, set := range []struct{ name, list string }{{"AllowedCPUs", cpus}, {"AllowedMemoryNodes", mems}} {
		if set.list == "" {
			continue
		}
		bits, err := sdcgroups.RangeToBits(set.list)
		if err != nil {
			return fmt.Errorf("%s %q: %w: %w", set.name, set.list, err, errdefs.ErrInvalidArgument)
		}
		p.add(set.name, bits)
	}
	return nil
}

func (p *properties) memory(m *specs.LinuxMemory) error {
	if !p.v2 {
		if given(m.Limit) {
			p.add("MemoryLimit", limitOf(*m.Limit))
		}
		return nil
	}
	if given(m.Swap) || given(m.Limit) && *m.Limit < 0 {
		s, err := swapMax(m)
		if err != nil {
			return err
		}
		if err := p.number("MemorySwapMax", s); err != nil {
			return err
		}
	}
	if given(m.Limit) {
		p.add("MemoryMax", limitOf(*m.Limit))
	}
	if given(m.Reservation) {
		p.add("MemoryLow", limitOf(*m.Reservation))
	}
	return nil
}

// unifiedProperties are the keys of a cgroup2 directory that systemd has a property for with the same meaning.
var unifiedProperties = map[string]string{
	"cpu.weight": "CPUWeight", "memory.min": "MemoryMin", "memory.low": "MemoryLow", "memory.high": "MemoryHigh",
	"memory.max": "MemoryMax", "memory.swap.max": "MemorySwapMax", "pids.max": "TasksMax",
}

// unified comes last: of two values for one property systemd takes the later one.
func (p *properties) unified(keys map[string]string) error {
	if !p.v2 {
		return nil // the files refuse it
	}
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		value := strings.TrimSpace(keys[key])
		switch key {
		case "cpu.max":
			quota, period, _ := strings.Cut(value, " ")
			n := uint64(defaultPeriod)
			if period != "" {
				var err error
				if n, err = strconv.ParseUint(period, 10, 64); err != nil || n == 0 {
					return fmt.Errorf("unified cpu.max %q: %w", value, errdefs.ErrInvalidArgument)
				}
			}
			q := int64(-1)
			if quota != "max" {
				var err error
				if q, err = strconv.ParseInt(quota, 10, 64); err != nil {
					return fmt.Errorf("unified cpu.max %q: %w", value, errdefs.ErrInvalidArgument)
				}
			}
			p.quota(q, n)
		case "cpuset.cpus":
			if err := p.cpuset(value, ""); err != nil {
				return err
			}
		case "cpuset.mems":
			if err := p.cpuset("", value); err != nil {
				return err
			}
		default:
			if name := unifiedProperties[key]; name != "" {
				if err := p.number(name, value); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func (p *properties) number(name, value string) error {
	n := infinity
	if value != "max" {
		var err error
		if n, err = strconv.ParseUint(value, 10, 64); err != nil {
			return fmt.Errorf("%s %q: %w", name, value, errdefs.ErrInvalidArgument)
		}
	}
	p.add(name, n)
	return nil
}

// devices: without them a daemon-reload on v1 would open every device to the container.
func (p *properties) devices(rules []specs.LinuxDeviceCgroup) error {
	if len(rules) == 0 {
		return nil
	}
	r := &cgroups.Resources{}
	for _, rule := range rules {
		d, err := deviceRule(rule)
		if err != nil {
			return err
		}
		r.Devices = append(r.Devices, d)
	}
	list, err := sdcgroups.GenerateDeviceProps(r, p.version)
	if err != nil {
		return fmt.Errorf("device rules: %w", err)
	}
	p.list = append(p.list, list...)
	return nil
}

// limitOf: in OCI -1 is unlimited.
func limitOf(n int64) uint64 {
	if n < 0 {
		return infinity
	}
	return uint64(n)
}
