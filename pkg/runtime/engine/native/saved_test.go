package native

import (
	"testing"

	"github.com/seed-9a14075a/cri-server/internal/quickjson/quicktest"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

func TestSavedJSON(t *testing.T) {
	var s shared
	for n := range 3 * sharedSpecs {
		var d saved
		quicktest.Fill(&d, n)
		if n > 0 && n%2 == 0 {
			d.Spec.Hooks = nil
			d.Spec = s.share(d.Spec)
			d.Cgroup = (&engine.Cgroup{V1: map[string]string{"pids": "/p/a", "cpu": "/c/a"}}).Pack()
		}
		for range 2 { // the second time its text is known
			b, err := d.appendJSON(&s)
			quicktest.Written(t, &d, b, err)
		}
		if len(s.texts) > sharedSpecs {
			t.Fatalf("%d texts are held", len(s.texts))
		}
	}
	if len(s.texts) == 0 {
		t.Error("no text is held")
	}
}
