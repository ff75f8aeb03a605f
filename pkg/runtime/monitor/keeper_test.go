package monitor

import (
	"encoding/json"
	"fmt"
	"testing"
)

// What a keeper knows of containers goes with them: it lives as long as cri-server does.
func TestKeeperForgets(t *testing.T) {
	k := &keeper{parts: map[string]part{"gone": {}, "there": {}, "still": {}}, told: map[string]bool{}, synced: make(chan struct{})}
	tell := func(v kept) {
		t.Helper()
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if err := k.take(&frame{kind: kindKept, body: b}); err != nil {
			t.Fatal(err)
		}
	}
	tell(kept{ID: "there"})
	tell(kept{ID: "still", Still: true})
	tell(kept{Synced: true})
	if _, ok := k.parts["there"]; !ok || len(k.parts) != 2 {
		t.Errorf("after all was told: %v", k.parts)
	}
	tell(kept{ID: "still", Still: true})
	tell(kept{ID: "still", Forget: true})
	for i := range 1000 {
		id := fmt.Sprint(i)
		tell(kept{ID: id})
		tell(kept{ID: id, Forget: true})
	}
	if len(k.parts) != 1 || len(k.told) != 0 {
		t.Errorf("%d containers are kept, %d are remembered", len(k.parts), len(k.told))
	}
}
