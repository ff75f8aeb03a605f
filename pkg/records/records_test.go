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
	check("longer", append(append([]byte(nil), good...), "{}\ncrc32c:00000000\n"...))
	check("run together", append(append([]byte(nil), good...), "{} crc32c:00000000\n"...))
	check("without an end", append(append([]byte(nil), good[:len(good)-1]...), good...))
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

// A file holds the records of some changes: the last whole one counts. What a killed writer began does not, and the next writer
// is not misled by it. A damaged last one shows, and so does a file that was cut where no writer is.
func TestChanges(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, 1)
	path := filepath.Join(dir, "aa.json")
	var ends []int
	var b []byte
	for n := range 3 {
		if err := s.Put("aa", pod{Name: strings.Repeat("web", 700), Count: n}); err != nil {
			t.Fatal(err)
		}
		var err error
		if b, err = os.ReadFile(path); err != nil {
			t.Fatal(err)
		}
		ends = append(ends, len(b))
	}
	with := func(b []byte) Entry[pod] {
		t.Helper()
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		list, err := s.Load()
		if err != nil || len(list) != 1 {
			t.Fatalf("%+v, %v", list, err)
		}
		return list[0]
	}
	pages := 0
	for n := ends[0]; n < ends[2]; n++ {
		want := 0
		if n >= ends[1] {
			want = 1
		}
		whole := n == ends[0] || n == ends[1] || n%4096 == 0
		pages += n % 4096 / 4095
		if e := with(b[:n]); errdefs.IsDataLoss(e.Err) == whole || whole && e.Err != nil || e.Value.Count != want {
			t.Fatalf("cut at %d: %v, %d", n, e.Err, e.Value.Count)
		}
		if err := s.Put("aa", pod{Count: 9}); err != nil {
			t.Fatal(err)
		}
		if v, err := s.Get("aa"); err != nil || v.Count != 9 {
			t.Fatalf("cut at %d, then written: %+v, %v", n, v, err)
		}
	}
	if pages == 0 {
		t.Error("no cut was at the end of a page")
	}
	for i := ends[1] * 8; i < ends[2]*8; i += 3 {
		c := append([]byte(nil), b...)
		c[i/8] ^= 1 << (i % 8)
		if e := with(c); !errdefs.IsDataLoss(e.Err) {
			t.Fatalf("bit %d: %+v", i, e)
		}
	}
}

func TestFilesStayShort(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, 1)
	long := strings.Repeat("x", 3000)
	for n := range 50 {
		if err := s.Put("aa", pod{Name: long, Count: n}); err != nil {
			t.Fatal(err)
		}
		if st, err := os.Stat(filepath.Join(dir, "aa.json")); err != nil || st.Size() > rewriteSize {
			t.Fatalf("%v, %v", st.Size(), err)
		}
		if v, err := s.Get("aa"); err != nil || v.Count != n {
			t.Fatalf("%d, %v", v.Count, err)
		}
	}
	if err := s.Put("aa", pod{Name: strings.Repeat("y", 2*rewriteSize)}); err != nil {
		t.Fatal(err)
	}
	if v, err := s.Get("aa"); err != nil || len(v.Name) != 2*rewriteSize {
		t.Fatalf("%d, %v", len(v.Name), err)
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
