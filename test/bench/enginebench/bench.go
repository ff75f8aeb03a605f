package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/cgroupdriver"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine/native"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine/oci"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/reaper"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/seccomp"
)

// settling is between two turns. What an engine does after its turn, such as getting ready for the next container, is none of
// the next one's cost.
var settling = 30 * time.Millisecond

// contestant is one engine.
type contestant struct {
	name   string
	engine engine.Engine
	native bool
}

// course is what all contestants run on.
type course struct {
	base, layer, parent string
	cgroups             cgroupdriver.Driver
	profile             *specs.LinuxSeccomp
	filter              []byte
	limit               *specs.LinuxCPU
	inPod               bool
	serial              int
	helpers             []int // processes that the engines keep
}

func bench(ctx context.Context, rounds, warm int, names []string) error {
	if err := enter(); err != nil {
		return err
	}
	r := reaper.New()
	defer r.Close()
	c, err := newCourse()
	if err != nil {
		return err
	}
	defer c.clean()
	var all []contestant
	for _, name := range names {
		x := contestant{name: name, native: name == "native"}
		if x.native {
			x.engine, err = native.New(r)
		} else {
			x.engine, err = oci.New(oci.Config{Path: name, Root: filepath.Join(c.base, "root-"+filepath.Base(name))}, r)
		}
		if err != nil {
			return err
		}
		all = append(all, x)
	}
	c.helpers = children()
	quota, period := int64(10_000), uint64(100_000)
	tenth := &specs.LinuxCPU{Quota: &quota, Period: &period}
	for _, part := range []struct {
		title string
		limit *specs.LinuxCPU
		inPod bool
	}{
		{"default seccomp profile", nil, false},
		{"default seccomp profile, limit of 100 m CPU", tenth, false},
		{"in the namespaces of a pod, default seccomp profile", nil, true},
		{"in the namespaces of a pod, default seccomp profile, limit of 100 m CPU", tenth, true},
	} {
		c.limit, c.inPod = part.limit, part.inPod
		samples := map[string][]sample{}
		for round := range warm + rounds {
			// Each round begins with another one: what the one before leaves behind is not always the same's to bear.
			for i := range all {
				x := all[(i+round)%len(all)]
				s, err := c.run(ctx, x)
				time.Sleep(settling)
				if err != nil {
					return fmt.Errorf("%s: %w", x.name, err)
				}
				if round >= warm {
					samples[x.name] = append(samples[x.name], s)
				}
			}
		}
		printTable(os.Stdout, fmt.Sprintf("%s, n=%d", part.title, rounds), names, samples)
	}
	return nil
}

func newCourse() (*course, error) {
	base, err := os.MkdirTemp("/run", "enginebench-")
	if err != nil {
		return nil, err
	}
	c := &course{base: base, layer: filepath.Join(base, "layer"), parent: fmt.Sprintf("/enginebench-%d", os.Getpid())}
	if err := makeLayer(c.layer); err != nil {
		return nil, fmt.Errorf("root file system: %w", err)
	}
	if err := makePod(base); err != nil {
		return nil, fmt.Errorf("namespaces of a pod: %w", err)
	}
	if c.cgroups, err = cgroupdriver.New(cgroupdriver.Config{Driver: "cgroupfs", DefaultParent: c.parent}); err != nil {
		return nil, err
	}
	// As the kubelet's pod cgroup, the parent is there before any container and outlives them.
	if _, err = c.cgroups.Create(context.Background(), c.keeper(), nil); err != nil {
		return nil, err
	}
	if c.profile, err = seccomp.RuntimeDefault(capabilities); err != nil {
		return nil, err
	}
	c.filter, err = seccomp.Compile(c.profile)
	return c, err
}

// keeper is a cgroup that is never used and keeps its parent in being.
func (c *course) keeper() string { return c.parent + "/keeper" }

// clean removes the cgroups' parent, which the contestants leave empty.
func (c *course) clean() {
	if err := c.cgroups.Delete(context.Background(), c.keeper()); err != nil {
		fmt.Fprintln(os.Stderr, "enginebench:", err)
	}
	dirs, _ := filepath.Glob("/sys/fs/cgroup/*" + c.parent)
	single, _ := filepath.Glob("/sys/fs/cgroup" + c.parent)
	for _, d := range slices.Concat(dirs, single) {
		var st unix.Statfs_t
		if unix.Statfs(d, &st) != nil || st.Type != unix.CGROUP_SUPER_MAGIC && st.Type != unix.CGROUP2_SUPER_MAGIC {
			continue // the cover of a hidden mount
		}
		if err := unix.Rmdir(d); err != nil {
			fmt.Fprintf(os.Stderr, "enginebench: rmdir %s: %v\n", d, err)
		}
	}
}
