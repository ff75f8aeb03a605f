package hygiene

import (
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// levels is the order of the components: a package may import its own level and those below (greater numbers). What
// is not named is a leaf, which imports leaves only.
var levels = map[string]int{
	"cmd":     0,
	"pkg/cri": 1, "pkg/admin": 1, "pkg/inspect": 1, "pkg/doctor": 1,
	"pkg/sandbox": 2, "pkg/runtime": 2, "pkg/imagestore": 2,
	"pkg/network": 3, "pkg/cgroupdriver": 3,
}

const leaf = 4

// contracts are leaf packages although they stand below a component: what an engine is, and the processes it makes, is
// spoken by all.
var contracts = []string{"pkg/runtime/engine", "pkg/runtime/reaper"}

// component is the part of a package's path that levels speaks of.
func component(pkg string) string {
	pkg = strings.TrimPrefix(pkg, module)
	if slices.Contains(contracts, pkg) {
		return pkg
	}
	parts := strings.Split(pkg, "/")
	if parts[0] == "pkg" && len(parts) > 1 {
		return "pkg/" + parts[1]
	}
	return parts[0]
}

func level(component string) int {
	if l, ok := levels[component]; ok {
		return l
	}
	return leaf
}

// imports maps each package of the product to those of the product that it imports, tests left out.
func imports(t *testing.T) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	for _, line := range goList(t, "-f", "{{.ImportPath}},{{join .Imports \",\"}}", "./cmd/...", "./pkg/...", "./internal/...") {
		f := strings.Split(line, ",")
		for _, i := range f[1:] {
			if strings.HasPrefix(i, module) {
				all[f[0]] = append(all[f[0]], i)
			}
		}
	}
	return all
}

func TestImportsRunOneWay(t *testing.T) {
	graph := map[string][]string{}
	for from, tos := range imports(t) {
		for _, to := range tos {
			a, b := component(from), component(to)
			if a == b {
				continue
			}
			if level(b) < level(a) {
				t.Errorf("%s imports %s: that runs upwards", strings.TrimPrefix(from, module), strings.TrimPrefix(to, module))
			}
			if !slices.Contains(graph[a], b) {
				graph[a] = append(graph[a], b)
			}
		}
	}
	// Go forbids cycles of packages; here whole components must not be in one.
	for start := range graph {
		if way := findWay(graph, start, start, nil); way != nil {
			t.Errorf("components import each other: %s", strings.Join(append([]string{start}, way...), " → "))
		}
	}
}

// findWay returns the components passed on a way from one to another, nil if there is none.
func findWay(graph map[string][]string, from, to string, passed []string) []string {
	for _, next := range graph[from] {
		if next == to {
			return append(passed, to)
		}
		if slices.Contains(passed, next) {
			continue
		}
		if way := findWay(graph, next, to, append(slices.Clone(passed), next)); way != nil {
			return way
		}
	}
	return nil
}

// Test programs and their images are no part of the product.
func TestProductDoesNotImportTests(t *testing.T) {
	for from, tos := range imports(t) {
		for _, to := range tos {
			if strings.HasPrefix(to, module+"test/") || strings.HasPrefix(to, module+"internal/test") && !strings.HasSuffix(from, "test") &&
				!strings.Contains(from, "test/") {
				t.Errorf("%s imports %s", from, to)
			}
		}
	}
}

func TestPackageNames(t *testing.T) {
	vague := regexp.MustCompile(`^(utils?|commons?|helpers?|misc|base|lib|shared|types|tools?)$`)
	for _, p := range goList(t, "./...") {
		if rel := strings.TrimPrefix(p, module); vague.MatchString(path.Base(rel)) && rel != "test/tools" {
			t.Errorf("package %s: its name doesn't say what it is", rel)
		}
	}
}
