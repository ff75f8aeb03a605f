package cgroupdriver

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestSystemdPath(t *testing.T) {
	d := &systemd{cgroupfs: &cgroupfs{layout: &layout{}}, slice: "/system.slice"}
	for _, c := range []struct {
		parent, id, want string
		err              error
	}{
		{"", "a", "/system.slice/cri-a.scope", nil},
		{"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice", "a",
			"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice/cri-a.scope", nil},
		{"kubepods-pod1.slice", "a", "/kubepods.slice/kubepods-pod1.slice/cri-a.scope", nil},
		{"/kubepods/burstable/pod1", "a", "", errdefs.ErrInvalidArgument},
		{"system.slice:cri:x", "a", "", errdefs.ErrInvalidArgument},
		{"/a--b.slice", "a", "", errdefs.ErrInvalidArgument},
		{"-.slice", "a", "", errdefs.ErrInvalidArgument},
		{".slice", "a", "", errdefs.ErrInvalidArgument},
		{"a.slice", "", "", errdefs.ErrInvalidArgument},
		{"a.slice", "b/c", "", errdefs.ErrInvalidArgument},
		{"a.slice", "../b", "", errdefs.ErrInvalidArgument},
		{"a.slice", strings.Repeat("x", 300), "", errdefs.ErrInvalidArgument},
	} {
		got, err := d.Path(c.parent, c.id)
		if got != c.want || !errors.Is(err, c.err) {
			t.Errorf("%q %q: %q, %v; want %q, %v", c.parent, c.id, got, err, c.want, c.err)
		}
	}
	p, _ := d.Path("a-b.slice", "id")
	if at := d.OCI(p); at.CgroupsPath != "a-b.slice:cri:id" || len(at.Args) != 1 || at.Cgroup == nil {
		t.Errorf("for an OCI runtime %+v", at)
	}
	if got := ID(p) + " " + ID("/kubepods/pod1/id"); got != "id id" {
		t.Errorf("ids %s", got)
	}
	_, err := d.Path("/kubepods/pod1", "a")
	for _, line := range []string{"cgroupDriver: systemd", `cgroup_driver = "cgroupfs"`} {
		if !strings.Contains(err.Error(), line) {
			t.Errorf("%q does not say %s", err, line)
		}
	}
}

func TestProperties(t *testing.T) {
	for _, c := range []struct {
		name string
		v2   bool
		ver  int
		res  *specs.LinuxResources
		want string
		err  error
	}{
		{"nil", false, 252, nil, "", nil},
		{"v1", false, 252, &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: p(uint64(512)), Quota: p(int64(20500)), Period: p(uint64(50000)), Cpus: "0"},
			Memory: &specs.LinuxMemory{Limit: p(int64(1 << 20)), Swap: p(int64(2 << 20))}, Pids: &specs.LinuxPids{Limit: p(int64(7))}},
			"CPUShares=512 CPUQuotaPeriodUSec=50000 CPUQuotaPerSecUSec=410000 MemoryLimit=1048576 TasksMax=7", nil},
		{"v2", true, 252, &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: p(uint64(1024)), Quota: p(int64(-1)), Cpus: "0-2", Mems: "0"},
			Memory: &specs.LinuxMemory{Limit: p(int64(1 << 20)), Swap: p(int64(3 << 20)), Reservation: p(int64(5))}, Pids: &specs.LinuxPids{Limit: p(int64(-1))}},
			"CPUWeight=100 CPUQuotaPeriodUSec=100000 CPUQuotaPerSecUSec=18446744073709551615 AllowedCPUs=[7] AllowedMemoryNodes=[1] " +
				"MemorySwapMax=2097152 MemoryMax=1048576 MemoryLow=5 TasksMax=18446744073709551615", nil},
		{"old systemd", true, 239, &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: p(int64(1)), Period: p(uint64(100000)), Cpus: "0"}}, "CPUQuotaPerSecUSec=10000", nil},
		{"unified", true, 252, &specs.LinuxResources{Unified: map[string]string{"memory.high": "5000", "cpu.max": "max 50000", "memory.swap.max": "max", "io.max": "8:0 rbps=1"}},
			"CPUQuotaPeriodUSec=50000 CPUQuotaPerSecUSec=18446744073709551615 MemoryHigh=5000 MemorySwapMax=18446744073709551615", nil},
		{"bad cpuset", true, 252, &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "x"}}, "", errdefs.ErrInvalidArgument},
		{"bad unified", true, 252, &specs.LinuxResources{Unified: map[string]string{"memory.max": "x"}}, "", errdefs.ErrInvalidArgument},
		{"bad cpu.max", true, 252, &specs.LinuxResources{Unified: map[string]string{"cpu.max": "1 0"}}, "", errdefs.ErrInvalidArgument},
	} {
		t.Run(c.name, func(t *testing.T) {
			props := &properties{v2: c.v2, version: c.ver}
			err := props.limits(c.res, nil)
			var got []string
			for _, p := range props.list {
				got = append(got, fmt.Sprintf("%s=%v", p.Name, p.Value.Value()))
			}
			if !errors.Is(err, c.err) || err == nil && strings.Join(got, " ") != c.want {
				t.Errorf("got %q, %v", strings.Join(got, " "), err)
			}
		})
	}
}

func TestParseVersion(t *testing.T) {
	for s, want := range map[string]int{"252.39-1~deb12u2": 252, "v245.4": 245, "257": 257, "": 0, "v": 0, "x1": 0} {
		if got, err := parseVersion(s); got != want || (err == nil) != (want > 0) {
			t.Errorf("%q: %d, %v", s, got, err)
		}
	}
}

// TestBusDeadline: nobody hangs on a systemd that takes the connection and says nothing.
func TestBusDeadline(t *testing.T) {
	silent := filepath.Join(t.TempDir(), "silent")
	l, err := net.Listen("unix", silent)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	b := newBus(slog.New(slog.DiscardHandler))
	b.sockets = [2]string{silent, silent + "-none"}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	begin := time.Now()
	if _, err := b.version(ctx); !errors.Is(err, errdefs.ErrUnavailable) {
		t.Errorf("error %v", err)
	}
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("it took %s", d)
	}
}

// TestPlaceholderSums fails when the source was changed without building the binaries anew.
func TestPlaceholderSums(t *testing.T) {
	var want string
	for _, name := range []string{"placeholder.c", "build.sh"} {
		b, err := os.ReadFile(filepath.Join("placeholder", name))
		if err != nil {
			t.Skip("needs the source tree: ", err)
		}
		want += fmt.Sprintf("%x  %s\n", sha256.Sum256(b), name)
	}
	if got, err := os.ReadFile("placeholder/SHA256SUMS"); err != nil || string(got) != want {
		t.Errorf("the binaries are of another source; run pkg/cgroupdriver/placeholder/build.sh\n%s", want)
	}
}
