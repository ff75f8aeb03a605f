package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestTally(t *testing.T) {
	dir := t.TempDir()
	skips, counts := filepath.Join(dir, "skips"), filepath.Join(dir, "counts")
	if err := os.WriteFile(skips, []byte("# list\n^p TestB$ | no such kernel\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	in := strings.Join([]string{
		`{"Action":"pass","Package":"p","Test":"TestA","Elapsed":7}`,
		`{"Action":"output","Package":"p","Test":"TestC","Output":"it broke\n"}`,
		`{"Action":"fail","Package":"p","Test":"TestC"}`,
		`{"Action":"skip","Package":"p","Test":"TestB"}`,
		`{"Action":"skip","Package":"p","Test":"TestD"}`,
		`{"Action":"fail","Package":"p"}`,
		`{"Action":"output","Package":"q","Output":"FAIL: the tests left behind\n"}`,
		`{"Action":"fail","Package":"q"}`,
		`{"Action":"build-output","ImportPath":"r","Output":"r.go:1: no\n"}`,
		`{"Action":"build-fail","ImportPath":"r"}`,
		`{"Action":"fail","Package":"r"}`,
		`{"Action":"skip","Package":"no-tests"}`,
		`not JSON`,
	}, "\n")
	var out strings.Builder
	if err := run(strings.NewReader(in), &out, skips, counts); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"FAIL p TestC", "it broke", "skip p TestB: no such kernel", "SKIP, not listed: p TestD",
		"left behind", "r.go:1: no", "not JSON", "slow p TestA"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in:\n%s", want, out.String())
		}
	}
	// Failed: TestC, the unlisted skip, q that failed outside its tests, r that didn't build.
	if b, err := os.ReadFile(counts); err != nil || string(b) != "1 4 2\n" {
		t.Errorf("%q %v", b, err)
	}
}
