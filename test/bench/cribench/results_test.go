package main

import (
	"math"
	"os"
	"path/filepath"
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
