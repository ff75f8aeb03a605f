package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestHits(t *testing.T) {
	name := filepath.Join(t.TempDir(), "hits")
	text := "cri-server a.b kill\ncri-monitor a.b kill\ncri-server a.b EIO\ncri-server c.d EIO\ncri-server old.one kill\n"
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	h := hits{}
	if err := h.read(name); err != nil {
		t.Fatal(err)
	}
	points := []string{"a.b", "c.d", "e.f"}
	if diff := cmp.Diff([]string{"c.d kill", "e.f kill"}, h.missing(points, []string{"kill"})); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"e.f EIO"}, h.missing(points, []string{"EIO"})); diff != "" {
		t.Error(diff)
	}
	table := h.table(points)
	for _, want := range []string{"a.b                            kill 2 ENOSPC 0 EIO 1", "kill: 2 times, at 1 of 3 points\n", "no point any more: old.one\n"} {
		if !strings.Contains(table, want) {
			t.Errorf("%q is not in:\n%s", want, table)
		}
	}
	for bad, text := range map[string]string{"short": "cri-server a.b\n", "long": "a b c d\n", "empty": "\n"} {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := h.read(name); err == nil {
			t.Errorf("%s: no error", bad)
		}
	}
	if err := h.read(name + ".not"); err == nil {
		t.Error("a file that is not there is no error")
	}
}
