package native

import (
	"fmt"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

func TestShared(t *testing.T) {
	spec := func(cwd, capability string) *specs.Spec {
		return &specs.Spec{Linux: &specs.Linux{}, Process: &specs.Process{Cwd: cwd,
			Capabilities: &specs.LinuxCapabilities{Bounding: []string{"CAP_CHOWN", capability}}}}
	}
	var s shared
	first := s.share(spec("/", "CAP_KILL"))
	if s.share(spec("/", "CAP_KILL")) != first {
		t.Error("two that are the same share nothing")
	}
	other := s.share(spec("/other", "CAP_KILL"))
	if other == first || other.Process.Capabilities != first.Process.Capabilities {
		t.Error("two that differ share more than their capabilities, or less")
	}
	if c := s.share(spec("/", "CAP_SYS_ADMIN")); c == first || c.Process.Capabilities == first.Process.Capabilities {
		t.Error("capabilities that differ are shared")
	}
	hooked := func() *specs.Spec {
		h := spec("/", "CAP_KILL")
		h.Hooks = &specs.Hooks{Poststop: []specs.Hook{{Path: "/hook"}}}
		return h
	}
	if a, b := s.share(hooked()), s.share(hooked()); a == b {
		t.Error("specs with hooks are shared")
	}
	if bare := (&specs.Spec{Process: &specs.Process{}}); s.share(bare) != bare {
		t.Error("a spec of its own kind became another")
	}
	// The one that is asked for again and again is held, others come and go.
	for i := range 5 * sharedSpecs {
		s.share(spec(fmt.Sprint("/", i), fmt.Sprint("CAP_", i)))
		if s.share(spec("/", "CAP_KILL")) != first {
			t.Fatalf("forgotten after %d others", i+1)
		}
	}
	if len(s.specs.list) != sharedSpecs || len(s.caps.list) != sharedSpecs {
		t.Errorf("%d specs and %d capabilities are held", len(s.specs.list), len(s.caps.list))
	}
	for i, v := range s.specs.list {
		for _, w := range s.specs.list[:i] {
			if v == w {
				t.Error("one is held twice")
			}
		}
	}
}
