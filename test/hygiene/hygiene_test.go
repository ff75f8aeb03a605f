package hygiene

import (
	"bytes"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/seed-9a14075a/cri-server/"

var update = flag.Bool("update", false, "write deps.txt anew")

// repo is the root of the source tree, relative to this package.
const repo = "../.."

// goList runs go list in the source tree and returns its lines.
func goList(t *testing.T, args ...string) []string {
	t.Helper()
	c := exec.Command("go", append([]string{"list"}, args...)...)
	c.Dir = repo
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		t.Fatalf("%v: %v\n%s", c.Args, err, stderr.String())
	}
	return strings.Fields(string(out))
}

// files lists the source tree's files that git knows or would add, without those that are deleted.
func files(t *testing.T, patterns ...string) []string {
	t.Helper()
	c := exec.Command("git", append([]string{"ls-files", "-z", "--cached", "--others", "--exclude-standard", "--"}, patterns...)...)
	c.Dir = repo
	out, err := c.Output()
	if err != nil {
		return walk(t, patterns)
	}
	var found []string
	for _, f := range strings.Split(strings.TrimRight(string(out), "\x00"), "\x00") {
		if st, err := os.Lstat(filepath.Join(repo, f)); err == nil && st.Mode().IsRegular() {
			found = append(found, f)
		}
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// walk is files for a source tree without git, such as an unpacked archive.
func walk(t *testing.T, patterns []string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(repo, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(repo, path)
		if d.IsDir() && (rel == ".git" || rel == ".cache" || rel == "bin") {
			return filepath.SkipDir
		}
		for _, p := range patterns {
			if ok, _ := filepath.Match(p, d.Name()); ok && d.Type().IsRegular() {
				found = append(found, rel)
				break
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestDependencyList(t *testing.T) {
	mods := goList(t, "-deps", "-f", "{{with .Module}}{{if not .Main}}{{.Path}}{{end}}{{end}}", "./cmd/...")
	slices.Sort(mods)
	got := strings.Join(slices.Compact(mods), "\n") + "\n"
	if *update {
		if err := os.WriteFile("deps.txt", []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("deps.txt")
	if err != nil {
		t.Fatal(err)
	}
	if string(want) == got {
		return
	}
	before, after := strings.Fields(string(want)), strings.Fields(got)
	for _, m := range after {
		if !slices.Contains(before, m) {
			t.Errorf("new dependency %s", m)
		}
	}
	for _, m := range before {
		if !slices.Contains(after, m) {
			t.Errorf("dependency %s is gone", m)
		}
	}
	t.Error("if that is meant: go test ./test/hygiene -run DependencyList -update, and commit deps.txt")
}

// The monitor holds every pod's processes for as long as the node is up: it stays small.
func TestMonitorIsLean(t *testing.T) {
	for _, p := range goList(t, "-deps", "./cmd/cri-monitor") {
		for _, heavy := range []string{"k8s.io/", "google.golang.org/grpc", "google.golang.org/protobuf", "oras.land/", "net/http",
			module + "pkg/cri", module + "pkg/imagestore", module + "pkg/network", module + "pkg/sandbox"} {
			if p == strings.TrimSuffix(heavy, "/") || strings.HasPrefix(p, strings.TrimSuffix(heavy, "/")+"/") {
				t.Errorf("cri-monitor depends on %s", p)
			}
		}
	}
}
