package inspect

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/seed-9a14075a/cri-server/pkg/operation"
)

// printer writes indented lines and keeps the first error.
type printer struct {
	w   io.Writer
	err error
}

func (p *printer) line(depth int, format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, "%s%s\n", strings.Repeat("  ", depth), fmt.Sprintf(format, args...))
	}
}

// field writes one aligned name and value; empty values are left out.
func (p *printer) field(depth int, name, value string) {
	if value != "" {
		p.line(depth, "%-*s %s", 14-2*depth, name, value)
	}
}

// WriteText writes the pod for a reader, and its containers below it.
func (pod *Pod) WriteText(w io.Writer, containers []*Container) error {
	p := &printer{w: w}
	p.line(0, "Pod %s/%s", pod.Namespace, pod.Name)
	p.field(1, "id", pod.ID)
	p.field(1, "uid", pod.UID)
	p.field(1, "state", pod.State)
	p.field(1, "handler", pod.Handler)
	p.field(1, "created", clock(pod.CreatedAt))
	p.field(1, "broken", pod.Broken)
	if n := pod.Network; n != nil {
		p.field(1, "network", n.Name+" "+strings.Join(n.IPs, " "))
		p.field(2, "netns", n.NetNS)
		p.field(2, "link", link(n))
	}
	p.common(pod.Namespaces, pod.Cgroup)
	p.field(1, "resources", pod.Resources.String())
	p.field(1, "overhead", pod.Overhead.String())
	var names []string
	for name := range pod.Files {
		names = append(names, name)
	}
	sort.Strings(names)
	for i, name := range names {
		if i == 0 {
			p.line(1, "files")
		}
		p.line(2, "%-12s %s", name, pod.Files[name])
	}
	p.processes(pod.Processes)
	p.operations(pod.Operations)
	for _, c := range containers {
		p.line(0, "")
		p.container(c)
	}
	return p.err
}

// String is empty for nil.
func (r *Resources) String() string {
	if r == nil {
		return ""
	}
	var parts []string
	for _, part := range []struct {
		name  string
		value int64
	}{{"cpu_shares", r.CPUShares}, {"cpu_quota", r.CPUQuota}, {"cpu_period", r.CPUPeriod}, {"memory", r.Memory}} {
		if part.value != 0 {
			parts = append(parts, fmt.Sprintf("%s=%d", part.name, part.value))
		}
	}
	for _, k := range slices.Sorted(maps.Keys(r.Unified)) {
		parts = append(parts, k+"="+r.Unified[k])
	}
	return strings.Join(parts, " ")
}

// WriteText writes the container for a reader.
func (c *Container) WriteText(w io.Writer) error {
	p := &printer{w: w}
	p.container(c)
	return p.err
}

func (p *printer) container(c *Container) {
	p.line(0, "Container %s", c.Name)
	p.field(1, "id", c.ID)
	p.field(1, "pod", c.PodID)
	p.field(1, "image", strings.TrimSpace(c.Image+" "+c.ImageID))
	p.field(1, "engine", c.Engine)
	p.field(1, "state", state(c))
	p.field(1, "message", c.Message)
	p.field(1, "created", clock(c.CreatedAt))
	p.field(1, "started", clock(c.StartedAt))
	p.field(1, "finished", clock(c.FinishedAt))
	p.field(1, "broken", c.Broken)
	p.field(1, "log", c.LogPath)
	p.common(c.Namespaces, c.Cgroup)
	if r := c.Rootfs; r != nil {
		p.line(1, "rootfs")
		p.field(2, "path", r.Path)
		for i, l := range r.Lower {
			p.field(2, fmt.Sprintf("lower %d", i), l)
		}
		p.field(2, "upper", r.Upper)
		p.field(2, "work", r.Work)
		p.field(2, "options", strings.Join(r.Options, ","))
	}
	for i, m := range c.Mounts {
		if i == 0 {
			p.line(1, "mounts")
		}
		p.line(2, "%s", mountText(m))
	}
	p.processes(c.Processes)
	p.operations(c.Operations)
}

func mountText(m Mount) string {
	s := m.Destination
	for _, part := range []struct{ before, text string }{
		{" ← ", m.Source}, {" ", m.Type}, {" ", strings.Join(m.Options, ",")},
	} {
		if part.text != "" {
			s += part.before + part.text
		}
	}
	return s
}

func link(n *Network) string {
	var parts []string
	for _, s := range []string{n.Interface, n.HostInterface, n.Bridge} {
		if s != "" {
			parts = append(parts, s)
		}
	}
	return strings.Join(parts, " ↔ ")
}

func state(c *Container) string {
	s := c.State
	if c.ExitCode != nil {
		s += fmt.Sprintf(", exit code %d", *c.ExitCode)
	}
	if c.Reason != "" {
		s += ", " + c.Reason
	}
	return s
}

// common writes what pods and containers both have.
func (p *printer) common(namespaces []Namespace, c *Cgroup) {
	for i, n := range namespaces {
		if i == 0 {
			p.line(1, "namespaces")
		}
		p.line(2, "%s", strings.TrimRight(fmt.Sprintf("%-7s %-5s %d %s", n.Type, n.Shared, n.Inode, n.Path), " "))
	}
	if c == nil {
		return
	}
	p.line(1, "cgroup v%d  %s", c.Version, c.Path)
	for _, d := range c.Dirs {
		p.field(2, "dir", d)
	}
	cpu := "no limit"
	if c.CPUQuota != nil && c.CPUPeriod != nil {
		cpu = fmt.Sprintf("%d µs per %d µs", *c.CPUQuota, *c.CPUPeriod)
	}
	if c.CPUWeight != nil {
		cpu += fmt.Sprintf(", weight %d", *c.CPUWeight)
	}
	if c.CPUShares != nil {
		cpu += fmt.Sprintf(", shares %d", *c.CPUShares)
	}
	if c.CPUUsage != nil {
		cpu += fmt.Sprintf(", used %v", time.Duration(*c.CPUUsage).Round(time.Millisecond))
	}
	p.field(2, "cpu", cpu)
	p.field(2, "cpuset", c.Cpuset)
	p.field(2, "memory", usage(c.MemoryUsage, c.MemoryMax, bytesText))
	p.field(2, "pids", usage(c.PidsCurrent, c.PidsMax, func(n int64) string { return fmt.Sprint(n) }))
}

func usage(used, limit *int64, format func(int64) string) string {
	if used == nil && limit == nil {
		return ""
	}
	u, l := "?", "no limit"
	if used != nil {
		u = format(*used)
	}
	if limit != nil {
		l = format(*limit)
	}
	return u + " of " + l
}

func bytesText(n int64) string {
	for _, u := range []struct {
		name string
		size int64
	}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}} {
		if n >= u.size {
			return fmt.Sprintf("%.1f %s", float64(n)/float64(u.size), u.name)
		}
	}
	return fmt.Sprintf("%d B", n)
}

func (p *printer) processes(list []Process) {
	if len(list) == 0 {
		return
	}
	p.line(1, "processes  %7s %7s %6s %9s", "pid", "inside", "uid", "rss")
	p.tree(0, list)
}

func (p *printer) tree(depth int, list []Process) {
	for _, c := range list {
		p.line(1, "         %s %7d %7d %6d %9s  %s%s", c.State, c.Pid, c.PidInside, c.UID, bytesText(c.RSS), strings.Repeat("  ", depth), c.Command)
		p.tree(depth+1, c.Children)
	}
}

func (p *printer) operations(list []operation.Timeline) {
	for _, t := range list {
		if t.Key == "" {
			continue
		}
		state := "took"
		if t.Running {
			state = "runs for"
		}
		p.line(1, "%s %s %v", t.Key, state, t.Total.Round(10*time.Microsecond))
		for _, s := range t.Stages {
			p.line(2, "%-20s %10v at %v", s.Name, s.Duration.Round(10*time.Microsecond), s.Start.Round(10*time.Microsecond))
			for _, part := range t.Parts {
				if part.Start >= s.Start && part.Start < s.Start+s.Duration {
					p.line(3, "%-18s %10v at %v", part.Name, part.Duration.Round(10*time.Microsecond), part.Start.Round(10*time.Microsecond))
				}
			}
		}
		if t.Error != "" {
			p.line(2, "failed: %s", t.Error)
		}
	}
}

func clock(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format("2006-01-02 15:04:05.000 -0700")
}
