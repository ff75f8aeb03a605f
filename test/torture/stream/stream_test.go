package stream

import (
	"bytes"
	"path/filepath"
	"testing"
)

func TestAppendLine(t *testing.T) {
	lengths := map[string]int{}
	for seed := range uint64(3) {
		for n := range int64(5000) {
			for _, which := range []int{Stdout, Stderr} {
				l := AppendLine(nil, seed, which, n)
				if !bytes.Equal(l, AppendLine([]byte("x"), seed, which, n)[1:]) {
					t.Fatal("the same line twice differs")
				}
				if bytes.IndexByte(l, '\n') != len(l)-1 {
					t.Fatalf("line %d has its end at %d of %d", n, bytes.IndexByte(l, '\n'), len(l))
				}
				switch {
				case len(l) == 1:
					lengths["empty"]++
				case len(l) > 16<<10:
					lengths["longer than a record"]++
				default:
					lengths["other"]++
				}
			}
		}
	}
	for _, kind := range []string{"empty", "longer than a record", "other"} {
		if lengths[kind] == 0 {
			t.Errorf("no line is %s", kind)
		}
	}
	if bytes.Equal(AppendLine(nil, 1, Stdout, 7), AppendLine(nil, 1, Stderr, 7)) || bytes.Equal(AppendLine(nil, 1, Stdout, 7), AppendLine(nil, 2, Stdout, 7)) {
		t.Error("streams are alike")
	}
}

func TestCounter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "counter")
	if _, err := OpenCounter(path, false); err == nil {
		t.Error("there is none")
	}
	if err := CreateCounter(path); err != nil {
		t.Fatal(err)
	}
	w, err := OpenCounter(path, true)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	r, err := OpenCounter(path, false)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	w.Lines[Stderr].Store(7)
	w.Phase.Store(Ending)
	if r.Lines[Stdout].Load() != 0 || r.Lines[Stderr].Load() != 7 || r.Phase.Load() != Ending {
		t.Error("what one writes the other does not see")
	}
}
