package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestJudge(t *testing.T) {
	const report = `[{"RunTime": 2000000000, "SpecReports": [
	  {"ContainerHierarchyTexts": ["[k8s.io] A"], "LeafNodeType": "It", "LeafNodeText": "passes", "State": "passed"},
	  {"ContainerHierarchyTexts": ["[k8s.io] A"], "LeafNodeType": "It", "LeafNodeText": "fails", "State": "failed", "Failure": {"Message": "no\nluck"}},
	  {"ContainerHierarchyTexts": ["[k8s.io] A"], "LeafNodeType": "It", "LeafNodeText": "skips", "State": "skipped", "Failure": {"Message": "no kernel"}},
	  {"ContainerHierarchyTexts": ["[k8s.io] A benchmark"], "LeafNodeType": "It", "LeafNodeText": "is filtered", "State": "skipped"},
	  {"LeafNodeType": "BeforeSuite", "State": "passed"}]}]`
	const counts = "critest: 1 passed, 1 failed, 1 skipped of 3 (2 s)"
	for name, c := range map[string]struct {
		list, handler string
		unexpected    int
		words         []string
	}{
		"all listed":          {"[k8s.io] A fails | reason\n[k8s.io] A skips | reason\n", "", 0, []string{"as listed (reason)"}},
		"nothing listed":      {"# nothing\n", "", 2, []string{"FAIL: [k8s.io] A fails", "no luck", "SKIP, not listed"}},
		"a listed one passes": {"[k8s.io] A fails | r\n[k8s.io] A skips | r\n[k8s.io] A passes | r\n", "", 1, []string{"PASSES"}},
		"no such spec":        {"[k8s.io] A fails | r\n[k8s.io] A skips | r\n[k8s.io] B | r\n", "", 1, []string{"no such spec: [k8s.io] B"}},
		"for this handler":    {"[k8s.io] A fails | handler=runc | r\n[k8s.io] A skips | r\n", "runc", 0, nil},
		"for another handler": {"[k8s.io] A fails | handler=runc | r\n[k8s.io] A skips | r\n", "crun", 1, nil},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			list, file := filepath.Join(dir, "list"), filepath.Join(dir, "report")
			for f, text := range map[string]string{list: c.list, file: report} {
				if err := os.WriteFile(f, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			var out strings.Builder
			got, err := judge(&out, file, list, c.handler, false)
			if err != nil || got.unexpected != c.unexpected {
				t.Fatalf("%+v, %v\n%s", got, err, out.String())
			}
			for _, w := range append(c.words, counts) {
				if !strings.Contains(out.String(), w) {
					t.Errorf("no %q in:\n%s", w, out.String())
				}
			}
		})
	}
}
