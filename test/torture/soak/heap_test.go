package main

import (
	"slices"
	"strings"
	"testing"
)

func TestReadMemory(t *testing.T) {
	m, err := readMemory(strings.NewReader("heap profile: 1: 16 [1: 16] @ heap/524288\n1: 16 [1: 16] @ 0x1\n#\t0x1\tmain.main+0x1\n\n" +
		"# runtime.MemStats\n# HeapAlloc = 2048\n# Stack = 1024 / 4096\n# PauseNs = [1 2]\n# DebugGC = false\n"))
	if err != nil || m.kib("HeapAlloc", "Stack") != 6 || len(m) != 2 {
		t.Errorf("%v %v", m, err)
	}
	if _, err := readMemory(strings.NewReader("an error page\n")); err == nil {
		t.Error("no profile was read as one")
	}
}

func TestNumbers(t *testing.T) {
	for list, want := range map[string][]int64{"": nil, "5": {5}, "1,20,300": {1, 20, 300}} {
		if got, err := numbers(list); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %v, %v", list, got, err)
		}
	}
	for _, list := range []string{"a", "0", "-1", "2,1", "1,1", "1;2"} {
		if got, err := numbers(list); err == nil {
			t.Errorf("%q: %v", list, got)
		}
	}
}
