package stdio

import (
	"testing"

	"github.com/seed-9a14075a/cri-server/internal/quickjson/quicktest"
)

func TestSavedJSON(t *testing.T) {
	for n := range 20 {
		var v Saved
		quicktest.Fill(&v, n)
		quicktest.Written(t, &v, v.AppendJSON(nil), nil)
		v.Log.Part[1], v.Log.Held = nil, nil
		quicktest.Written(t, &v, v.AppendJSON(nil), nil)
	}
}
