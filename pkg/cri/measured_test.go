package cri

import "testing"

func TestMeasured(t *testing.T) {
	for _, n := range []int{0, 1, 2, measureBatch, 3*measureBatch + 1} {
		list := make([]int, n)
		for i := range list {
			list[i] = i
		}
		got := 0
		for v := range measured(list, func(i int) int { return 2 * i }) {
			if v != 2*got {
				t.Fatalf("%d of %d is %d", got, n, v)
			}
			got++
		}
		if got != n {
			t.Errorf("%d of %d", got, n)
		}
	}
	calls := 0
	for range measured(make([]int, 10*measureBatch), func(int) int { return 0 }) {
		if calls++; calls == 3 {
			break
		}
	}
	if calls != 3 {
		t.Errorf("went on after the end: %d", calls)
	}
}
