package faultpoint

import (
	"flag"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write points.txt anew")

// call matches the point of a Hit, a Pass, or a function named step that ends in one.
var call = regexp.MustCompile(`\b(?:faultpoint\.(?:Hit|Pass)|step)\(("[^"]*"|[^")]*)\)`)

var validName = regexp.MustCompile(`^[a-z]+(\.[a-z]+)+$`)

// points.txt names every point of the source, and each is in one place.
func TestPoints(t *testing.T) {
	found := map[string]string{}
	for _, top := range []string{"../../pkg", "../../cmd"} {
		err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") ||
				strings.Contains(path, "/faultpoint/") {
				return err
			}
			b, err := os.ReadFile(path)
			if err != nil || !strings.Contains(string(b), "faultpoint") && !strings.Contains(string(b), "step(") {
				return err
			}
			for _, m := range call.FindAllStringSubmatch(string(b), -1) {
				name, ok := strings.CutPrefix(m[1], `"`)
				if !ok {
					continue // the body or the declaration of a step
				}
				name = strings.TrimSuffix(name, `"`)
				if !validName.MatchString(name) {
					t.Errorf("%s: %q is no name of a point", path, name)
				}
				if before := found[name]; before != "" {
					t.Errorf("%s is in %s and in %s", name, before, path)
				}
				found[name] = path
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	var names []string
	for n := range found {
		names = append(names, n)
	}
	slices.Sort(names)
	if *update {
		if err := os.WriteFile("points.txt", []byte(strings.Join(names, "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(names, Points()); diff != "" {
		t.Errorf("points.txt is old; go test ./pkg/faultpoint -update writes it:\n%s", diff)
	}
}

func TestParse(t *testing.T) {
	rules, err := Parse("# comment\n\n a.b 3 kill\na.* 2+ ENOSPC\n* * delay:5ms\nc.d 1 block\ne.f 1 panic\n")
	if err != nil {
		t.Fatal(err)
	}
	want := []Rule{{"a.b", 3, false, Kill}, {"a.*", 2, true, "ENOSPC"}, {"*", 1, true, "delay:5ms"}, {"c.d", 1, false, Block}, {"e.f", 1, false, Panic}}
	if diff := cmp.Diff(want, rules); diff != "" {
		t.Error(diff)
	}
	for _, bad := range []string{"a.b", "a.b 1", "a.b 0 kill", "a.b -1 kill", "a.b x kill", "a.b + kill", "a.b 1 die", "a.b 1 delay:",
		"a.b 1 delay:x", "[ 1 kill", "a.b 1 kill now", "a.b 1 ENOTHING"} {
		if r, err := Parse(bad); err == nil {
			t.Errorf("%q: %v", bad, r)
		}
	}
}

func TestArm(t *testing.T) {
	dir := t.TempDir()
	if err := Arm(dir, "p", Rule{Point: "a.b", N: 2, Action: "EIO"}, Rule{Point: "*", N: 1, Onward: true, Action: Block}); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "p.plan"))
	if err != nil || string(b) != "a.b 2 EIO\n* 1+ block\n" {
		t.Errorf("%q %v", b, err)
	}
	if err := Arm(dir, "p", Rule{Point: "a.b", Action: "EIO"}); err == nil {
		t.Error("a rule for hit 0 was taken")
	}
	if hits, err := Hits(dir, "p"); err != nil || hits != nil {
		t.Error(hits, err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Error(left)
	}
}

// What a point costs: nothing without the tag.
func BenchmarkHit(b *testing.B) {
	b.Run("none", func(b *testing.B) {
		for b.Loop() {
			benchErr = nil
		}
	})
	b.Run("hit", func(b *testing.B) {
		for b.Loop() {
			benchErr = Hit("some.point")
		}
	})
}

var benchErr error
