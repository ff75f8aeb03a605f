package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"reflect"
	"sync/atomic"
	"testing"
	"time"

	"github.com/seed-9a14075a/cri-server/internal/testns"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

func TestKeptJSON(t *testing.T) {
	for _, in := range []kept{
		{}, {Synced: true}, {ID: "a", Forget: true}, {ID: "a", Still: true}, {Data: json.RawMessage(`{"b":[1]}`)},
		{ID: "a", Data: json.RawMessage(`{"b":"}"}`)}, {Journal: true, Data: json.RawMessage(`null`)},
	} {
		b, err := marshal(nil, in)
		if err != nil {
			t.Fatal(err)
		}
		var out kept
		if err := json.Unmarshal(b, &out); err != nil || string(out.Data) != string(in.Data) {
			t.Errorf("%s: %v, data %s", b, err, out.Data)
		}
		if out.Data, in.Data = nil, nil; !reflect.DeepEqual(in, out) {
			t.Errorf("%s: %+v, want %+v", b, out, in)
		}
	}
}

// muteEngine has containers of which no picture can be made, as while the file system of a log hangs.
type muteEngine struct {
	forkEngine
	mute *atomic.Bool
}

type muteContainer struct {
	engine.Container
	mute *atomic.Bool
}

func (e muteEngine) Create(ctx context.Context, c *engine.Config) (engine.Container, error) {
	ctr, err := e.forkEngine.Create(ctx, c)
	return muteContainer{ctr, e.mute}, err
}

func (c muteContainer) Save() (*engine.Saved, error) {
	if c.mute.Load() {
		return nil, errors.New("mute")
	}
	return c.Container.Save()
}

// A container of which no picture can be made is not forgotten by its keepers; they get one as soon as there is one, also if a
// freeze came in between and was given up.
func TestKeptLater(t *testing.T) {
	was := keepAgain
	keepAgain = time.Millisecond
	t.Cleanup(func() { keepAgain = was }) // after the node's end
	e := muteEngine{forkEngine{theReaper()}, &atomic.Bool{}}
	n := newNodeWith(t, func(*OCIRuntime) (engine.Engine, error) { return e, nil })
	n.s.cfg.Reaper = theReaper()
	n.run(n.request("c", "sleep 1000"))
	e.mute.Store(true)
	uc, err := n.connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer uc.Close()
	f, err := exchange(t.Context(), uc, kindKeep, nil)
	if err != nil {
		t.Fatal(err)
	}
	f.closeFiles()
	next := func() (v kept) {
		t.Helper()
		_ = uc.SetReadDeadline(time.Now().Add(testns.Patience(20 * time.Second)))
		f, err := readFrame(uc, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer f.closeFiles()
		if err := f.decode(&v); err != nil {
			t.Fatal(err)
		}
		return v
	}
	still := false
	for v := next(); !v.Synced; v = next() {
		still = still || v.ID == "c" && v.Still && v.Data == nil
	}
	if !still {
		t.Error("the keeper was told nothing of the container")
	}
	ctx, cancel := context.WithTimeout(t.Context(), testns.Patience(20*time.Second))
	defer cancel()
	thaw, err := n.s.freeze(ctx)
	if err != nil {
		t.Fatal(err)
	}
	c, err := n.s.find("c")
	if err != nil {
		t.Fatal(err)
	}
	c.inputClosed() // what was to be tried again comes now
	e.mute.Store(false)
	thaw()
	if v := next(); v.ID != "c" || v.Data == nil {
		t.Errorf("%+v", v)
	}
}
