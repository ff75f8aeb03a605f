package oci

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
)

// capability is what is known of the runtime.
type capability struct {
	version version // the newest runtime-spec it understands
	// known is what `features` printed (runtime-spec features.md); nil where the runtime has no such command.
	known *features.Features
}

// version is major.minor.patch of a runtime-spec.
type version [3]int

// baseline is assumed of a runtime that doesn't tell.
var baseline = version{1, 0, 2}

func (v version) String() string { return fmt.Sprintf("%d.%d.%d", v[0], v[1], v[2]) }

func (v version) less(w version) bool { return slices.Compare(v[:], w[:]) < 0 }

// parseVersion reads "1.0.2-dev" as 1.0.2.
func parseVersion(s string) (version, bool) {
	s, _, _ = strings.Cut(strings.TrimSpace(s), "-")
	s, _, _ = strings.Cut(s, "+")
	parts := strings.Split(s, ".")
	if len(parts) != 3 {
		return version{}, false
	}
	var v version
	for i, p := range parts {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil {
			return version{}, false
		}
		v[i] = int(n)
	}
	return v, true
}

// probe asks `features`, and where that fails the "spec:" line of `--version`.
func (e *Engine) probe(ctx context.Context) (capability, error) {
	out, code, err := e.output(ctx, "features")
	if err != nil {
		return capability{}, err
	}
	if code == 0 {
		if c, ok := parseFeatures(out); ok {
			return c, nil
		}
	}
	out, code, err = e.output(ctx, "--version")
	if err != nil {
		return capability{}, err
	}
	if code != 0 {
		return capability{}, fmt.Errorf("--version: exit code %d: is this an OCI runtime?", code)
	}
	return capability{version: versionLine(out)}, nil
}

func parseFeatures(out []byte) (capability, bool) {
	var f features.Features
	if json.Unmarshal(out, &f) != nil {
		return capability{}, false
	}
	v, ok := parseVersion(f.OCIVersionMax)
	if !ok {
		return capability{}, false
	}
	return capability{version: v, known: &f}, true
}

func versionLine(out []byte) version {
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		if s, ok := strings.CutPrefix(strings.TrimSpace(lines.Text()), "spec:"); ok {
			if v, ok := parseVersion(s); ok {
				return v
			}
		}
	}
	return baseline
}

// specVersion is the ociVersion to write into config.json: the spec's own, but never above what the runtime takes (crun
// before 1.9 refuses anything above 1.0.x).
func (c capability) specVersion(own string) string {
	top := c.version
	if top.less(baseline) && top[0] == 1 {
		top = baseline // 1.0.x differ by wording only
	}
	v, ok := parseVersion(own)
	if !ok {
		v, _ = parseVersion(specs.Version)
	}
	if top.less(v) {
		return top.String()
	}
	return v.String()
}
