package main

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestPercentiles(t *testing.T) {
	s := &samples{}
	for _, v := range []float64{5, 1, 4, 2, 3} {
		s.add(v)
	}
	for p, want := range map[float64]float64{0: 1, 50: 3, 95: 5, 99: 5, 100: 5} {
		if got := s.at(p); got != want {
			t.Errorf("p%v: %v, want %v", p, got, want)
		}
	}
	if s.mean() != 3 {
		t.Errorf("mean: %v", s.mean())
	}
	var none *samples
	if !math.IsNaN(none.at(50)) || !math.IsNaN(none.mean()) || three(none) != "–" {
		t.Error("no samples are not told as such")
	}
}

func TestCountCalls(t *testing.T) {
	first := "1 execve(\"/x\", [\"x\"], 0x1) = 0\n2 execve(\"/y\", [\"y\"], 0x1) = -1 ENOENT (No such file)\n1 fdatasync(5 <unfinished ...>\n1 <... fdatasync resumed>) = 0\n"
	second := "3 execve(\"/z\", [\"z\"], 0x1 <unfinished ...>\n3 <... execve resumed>) = 0\n3 fsync(4) = 0\n3 +++ exited with 0 +++\n"
	file := filepath.Join(t.TempDir(), "strace")
	if err := os.WriteFile(file, []byte(first+second), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, part := range [][2]int64{{0, int64(len(first))}, {int64(len(first)), int64(len(first + second))}} {
		n, err := countCalls(file, part[0], part[1])
		if err != nil || n["execs"] != 1 || n["syncs"] != 1 {
			t.Errorf("%v: %v, %v", part, n, err)
		}
	}
}

func TestSystemdSection(t *testing.T) {
	dir := t.TempDir()
	if s := systemdSection(dir); s != "" {
		t.Errorf("without a run: %q", s)
	}
	r := &results{Command: "make bench-node"}
	x := r.target("cri-server")
	record(&x.Calls, podStart, 12)
	record(&x.CPU, systemdCPU, 3)
	x.Errors = []string{"it\nbroke"}
	if err := r.write(dir); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "systemd.json")
	if err := os.Rename(filepath.Join(dir, "results.json"), file); err != nil {
		t.Fatal(err)
	}
	s := systemdSection(dir)
	for _, want := range []string{"## With the systemd cgroup driver", "`make bench-node`", "| pod start | ms, p50 / p95 / p99 | 12.0", "beside it | CPU ms, mean | 3.00 |", "- cri-server: it broke"} {
		if !strings.Contains(s, want) {
			t.Errorf("%q is not in:\n%s", want, s)
		}
	}
	if err := os.WriteFile(file, []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if s := systemdSection(dir); !strings.Contains(s, "systemd.json") {
		t.Errorf("a broken file: %q", s)
	}
}

func TestPodSlice(t *testing.T) {
	g := &group{path: "/cribench.slice/cribench-t3.slice", units: &units{}}
	const want = "/cribench.slice/cribench-t3.slice/cribench-t3-pod12.slice"
	if got := g.pod(podName(12)); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}
