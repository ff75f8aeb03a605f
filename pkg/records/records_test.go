package records

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
)

type pod struct {
	Name   string            `json:"name"`
	Labels map[string]string `json:"labels,omitempty"`
	Count  int               `json:"count"`
}

func open(t testing.TB, dir string, version int) *Store[pod] {
	t.Helper()
	s, err := Open[pod](dir, version)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestRoundTrip(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	s := open(t, dir, 1)
	want := pod{Name: "<web>\n", Labels: map[string]string{"a": "b"}, Count: 3}
	for _, id := range []string{"ff", "0a"} {
		if err := s.Put(id, pod{Name: "old"}); err != nil {
			t.Fatal(err)
		}
		if err := s.Put(id, want); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "README.json"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := open(t, dir, 1).Load()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]Entry[pod]{
		{ID: "0a", Value: want, SameBoot: true},
		{ID: "ff", Value: want, SameBoot: true},
	}, got); diff != "" {
		t.Error(diff)
	}
	if v, err := s.Get("ff"); err != nil || !cmp.Equal(v, want) {
		t.Errorf("Get: %v, %v", v, err)
	}
	for range 2 {
		if err := s.Delete("ff"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Get("ff"); !errdefs.IsNotFound(err) {
		t.Errorf("Get after Delete: %v", err)
	}
	for path, mode := range map[string]os.FileMode{dir: 0o700, filepath.Join(dir, "0a.json"): 0o600} {
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if st.Mode().Perm() != mode {
			t.Errorf("%s has mode %v", path, st.Mode())
		}
	}
}

func TestBadIDs(t *testing.T) {
	s := open(t, t.TempDir(), 1)
	for _, id := range []string{"", ".", "..", "../aa", "a/b", "AA", "xyz", "a.json", "a\x00", strings.Repeat("a", 129)} {
		_, gerr := s.Get(id)
		for op, err := range map[string]error{"put": s.Put(id, pod{}), "delete": s.Delete(id), "get": gerr} {
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%s %q: %v", op, id, err)
			}
		}
	}
}

// Every single-bit flip and every cut must show as damage, and the entry must stay in the list.
func TestDamageIsListed(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, 1)
	if err := s.Put("aa", pod{Name: "web", Count: 1}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "aa.json")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	check := func(what string, b []byte) {
		t.Helper()
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := s.Load()
		if err != nil || len(got) != 1 || got[0].ID != "aa" || !errdefs.IsDataLoss(got[0].Err) {
			t.Fatalf("%s: %+v, %v", what, got, err)
		}
	}
	for i := range len(good) * 8 {
		b := append([]byte(nil), good...)
		b[i/8] ^= 1 << (i % 8)
		check(fmt.Sprintf("bit %d", i), b)
	}
	for n := range good {
		check(fmt.Sprintf("cut at %d", n), good[:n])
	}
	check("longer", append(append([]byte(nil), good...), good...))
	check("empty data", mustEncode(t, "aa", 1, nil))
	check("other id", mustEncode(t, "bb", 1, pod{}))
	check("version 0", mustEncode(t, "aa", 0, pod{}))
	check("other type", mustEncode(t, "aa", 1, "text"))

	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Load(); err != nil || len(got) != 1 || got[0].Err == nil {
		t.Fatalf("directory: %+v, %v", got, err)
	}
	if err := s.Delete("aa"); err != nil {
		t.Fatal(err)
	}
}

type null struct{}

func (null) MarshalJSON() ([]byte, error) { return []byte("1"), nil }

func mustEncode(t *testing.T, id string, version int, v any) []byte {
	t.Helper()
	if v == nil {
		v = null{}
	}
	b, err := encode(id, version, "boot", v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestNewerVersionIsShownNotTrusted(t *testing.T) {
	dir := t.TempDir()
	if err := open(t, dir, 2).Put("aa", pod{Name: "web"}); err != nil {
		t.Fatal(err)
	}
	got, err := open(t, dir, 1).Load()
	if err != nil || len(got) != 1 {
		t.Fatal(got, err)
	}
	if e := got[0]; !errors.Is(e.Err, errdefs.ErrFailedPrecondition) || e.Value.Name != "web" || !e.SameBoot {
		t.Errorf("%+v", e)
	}
	if got, _ := open(t, dir, 3).Load(); got[0].Err != nil {
		t.Errorf("older version: %v", got[0].Err)
	}
}

func TestOtherBoot(t *testing.T) {
	s := open(t, t.TempDir(), 1)
	boot := s.boot
	s.boot = "another"
	if err := s.Put("aa", pod{}); err != nil {
		t.Fatal(err)
	}
	s.boot = boot
	if got, _ := s.Load(); got[0].SameBoot || got[0].Err != nil {
		t.Errorf("%+v", got)
	}
}

func TestLeftoversGo(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, 1)
	if err := s.Put("aa", pod{}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, tempPrefix+"1"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, 1)
	if err := s.Put("bb", pod{}); err != nil {
		t.Fatal(err)
	}
	names, _ := s.names()
	if diff := cmp.Diff([]string{"aa.json", "bb.json"}, names); diff != "" {
		t.Error(diff)
	}
}

func TestFailedPutKeepsTheOldRecord(t *testing.T) {
	s, err := Open[any](t.TempDir(), 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Put("aa", "old"); err != nil {
		t.Fatal(err)
	}
	if err := s.Put("aa", make(chan int)); err == nil {
		t.Fatal("a channel has no JSON")
	}
	if v, err := s.Get("aa"); err != nil || v != "old" {
		t.Errorf("%v, %v", v, err)
	}
	if err := os.RemoveAll(s.dir); err != nil {
		t.Fatal(err)
	}
	if err := s.Put("aa", "new"); err == nil {
		t.Error("no directory, no error")
	}
	if _, err := s.Load(); err == nil {
		t.Error("no directory, no error")
	}
}

func TestConcurrent(t *testing.T) {
	s := open(t, t.TempDir(), 1)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for n := range 50 {
				if err := s.Put(fmt.Sprintf("%02x", i), pod{Count: n}); err != nil {
					t.Error(err)
				}
				list, err := s.Load()
				if err != nil {
					t.Error(err)
				}
				for _, e := range list {
					if e.Err != nil {
						t.Error(e.Err)
					}
				}
			}
		})
	}
	wg.Wait()
}

// A pod's start writes three records; each may take 100 µs.
func BenchmarkPut(b *testing.B) {
	s := open(b, b.TempDir(), 1)
	v := pod{Name: strings.Repeat("x", 2000)}
	for b.Loop() {
		if err := s.Put("aa", v); err != nil {
			b.Fatal(err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	good, err := encode("aa", 1, "boot", pod{Name: "web", Labels: map[string]string{"a": "b"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte("{}\ncrc32c:00000000\n"))
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		v, _, err := decode[pod](b, "aa", 1)
		if err != nil {
			return
		}
		// What is accepted must survive being written again.
		again, err := encode("aa", 1, "boot", v)
		if err != nil {
			t.Fatal(err)
		}
		w, _, err := decode[pod](again, "aa", 1)
		if err != nil || !cmp.Equal(v, w) {
			t.Fatalf("%+v became %+v: %v", v, w, err)
		}
	})
}
