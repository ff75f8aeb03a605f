package enginetest

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

var adoptTests = []test{
	{"adopt/created", nil, adoptCreated},
	{"adopt/running", nil, adoptRunning},
	{"adopt/started since it was saved", nil, adoptStarted},
	{"adopt/garbage", nil, adoptGarbage},
}

// save saves the container as another process would get it.
func (b *box) save() *engine.Saved {
	b.t.Helper()
	saved, err := b.c.Save()
	if err != nil {
		b.t.Fatalf("save: %v", err)
	}
	line, err := json.Marshal(saved)
	if err != nil {
		b.t.Fatal(err)
	}
	moved := &engine.Saved{Files: saved.Files} // they stay in this process
	if err := json.Unmarshal(line, moved); err != nil {
		b.t.Fatal(err)
	}
	return moved
}

// adopt goes on with what was saved; the former container is not used any more.
func (b *box) adopt(saved *engine.Saved) *engine.Adopted {
	b.t.Helper()
	a, err := b.s.engine.Adopt(b.ctx(), saved)
	if err != nil {
		b.t.Fatalf("adopt: %v", err)
	}
	b.c = a.Container
	return a
}

func adoptCreated(t *testing.T, s *suite) {
	b := s.box(t, s.spec("echo $((6*7)); hostname; cat")).create()
	saved := b.save()
	saved.Pending = true
	if a := b.adopt(saved); !a.Pending || a.StartError != nil {
		t.Errorf("pending %v, error %v", a.Pending, a.StartError)
	}
	if got := b.start().finish(); !strings.HasPrefix(got, "42\n") {
		t.Error(got)
	}
}

func adoptRunning(t *testing.T, s *suite) {
	b := s.live(t, "")
	if a := b.adopt(b.save()); a.Pending || a.StartError != nil {
		t.Errorf("pending %v, error %v", a.Pending, a.StartError)
	}
	equal(t, "exit code of a session", b.exec("exit 5").code(t), 5)
	b.finish()
}

// adoptStarted: whoever has saved it started it, and died without a word.
func adoptStarted(t *testing.T, s *suite) {
	b := s.box(t, s.spec("echo ready; cat >/dev/null")).create()
	saved := b.save()
	for i, fd := range saved.Files[1:] { // the start closes the container's own
		var err error
		if saved.Files[i+1], err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3); err != nil {
			t.Fatal(err)
		}
	}
	b.start().ready("ready")
	saved.Pending, saved.Died, saved.Starting = true, true, true
	if a := b.adopt(saved); a.Pending || a.StartError != nil {
		t.Errorf("pending %v, error %v", a.Pending, a.StartError)
	}
	b.finish()
}

func adoptGarbage(t *testing.T, s *suite) {
	for _, data := range []string{"", "{", "{}", `{"id":"x","pid":-1}`, `{"id":"x","pid":1,"spec":{}}`, `[]`} {
		if a, err := s.engine.Adopt(stepContext(t), &engine.Saved{Data: []byte(data)}); !errdefs.IsDataLoss(err) {
			t.Errorf("%q: %v, %v", data, a, err)
		}
	}
}
