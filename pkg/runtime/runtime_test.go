package runtime

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/pkg/cgroupdriver"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/monitor"
)

func TestMerge(t *testing.T) {
	old := &runtimeapi.LinuxContainerResources{
		CpuPeriod: 100000, CpuQuota: 20000, CpuShares: 512, MemoryLimitInBytes: 1 << 20, CpusetCpus: "0",
		Unified: map[string]string{"memory.high": "1", "memory.low": "2"},
	}
	before := proto.Clone(old)
	got := merge(old, &runtimeapi.LinuxContainerResources{CpuQuota: -1, CpusetMems: "0", Unified: map[string]string{"memory.high": "9"}})
	want := &runtimeapi.LinuxContainerResources{
		CpuPeriod: 100000, CpuQuota: -1, CpuShares: 512, MemoryLimitInBytes: 1 << 20, CpusetCpus: "0", CpusetMems: "0",
		Unified: map[string]string{"memory.high": "9", "memory.low": "2"},
	}
	if !proto.Equal(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
	if !proto.Equal(old, before) {
		t.Error("merge changed its input")
	}
	if got := merge(nil, &runtimeapi.LinuxContainerResources{CpuShares: 2}); got.CpuShares != 2 {
		t.Errorf("without old resources: %v", got)
	}
}

func TestRates(t *testing.T) {
	var r rates
	at := time.Unix(1000, 0)
	read := func(d time.Duration, usage uint64) uint64 {
		return r.nanoCores("x", at, &cgroupdriver.Stats{Time: at.Add(d), CPU: &cgroupdriver.CPUStats{Usage: usage}})
	}
	for _, step := range []struct {
		name  string
		after time.Duration
		usage uint64
		want  uint64
	}{
		{"first", 0, 5e9, 0},
		{"half a core", 2 * time.Second, 6e9, 5e8},
		{"too soon: the old rate", 2*time.Second + 10*time.Millisecond, 7e9, 5e8},
		{"counter went back", 4 * time.Second, 1e9, 0},
		{"two cores", 5 * time.Second, 3e9, 2e9},
	} {
		if got := read(step.after, step.usage); got != step.want {
			t.Errorf("%s: got %d, want %d", step.name, got, step.want)
		}
	}
}

func TestCapture(t *testing.T) {
	b := &budget{left: 100000}
	var out, errs capture
	for _, c := range []*capture{&out, &errs} {
		if err := c.open(b); err != nil {
			t.Fatal(err)
		}
		c.start()
		c.start() // once is enough
	}
	if _, err := out.w.Write(bytes.Repeat([]byte("o"), 70000)); err != nil {
		t.Fatal(err)
	}
	out.w.Close()
	got := out.finish()
	if _, err := errs.w.Write(bytes.Repeat([]byte("e"), 300000)); err != nil { // more than the pipe holds: it must be read
		t.Fatal(err)
	}
	errs.w.Close()
	if e := errs.finish(); len(got) != 70000 || len(e) != 30000 {
		t.Errorf("kept %d and %d bytes, want 70000 and 30000", len(got), len(e))
	}
}

// TestCaptureAtTheEnd: output of a program that has ended before anybody read it.
func TestCaptureAtTheEnd(t *testing.T) {
	const pipe = 64 << 10
	for name, tt := range map[string]struct {
		write, more int
		held        bool // a child of the program has the pipe still
		budget      int64
		want        int
	}{
		"nothing":             {budget: 10},
		"a line":              {write: 100, budget: 1000, want: 100},
		"a full pipe":         {write: pipe, budget: 1 << 20, want: pipe},
		"more than wanted":    {write: 5000, budget: 4097, want: 4097},
		"held":                {write: 100, held: true, budget: 1000, want: 100},
		"held, and goes on":   {write: pipe, more: pipe, held: true, budget: 1 << 20, want: 2 * pipe},
		"held, with no bytes": {held: true, budget: 10},
	} {
		t.Run(name, func(t *testing.T) {
			var c capture
			if err := c.open(&budget{left: tt.budget}); err != nil {
				t.Fatal(err)
			}
			defer c.close()
			if _, err := c.w.Write(make([]byte, tt.write)); err != nil {
				t.Fatal(err)
			}
			deadline := time.Now().Add(time.Minute)
			if tt.held {
				fd, err := unix.Dup(int(c.w.Fd()))
				if err != nil {
					t.Fatal(err)
				}
				child := os.NewFile(uintptr(fd), "child")
				defer child.Close()
				c.w.Close()
				if tt.more == 0 {
					deadline = time.Now() // it says nothing more
				}
				go func() {
					if _, err := child.Write(make([]byte, tt.more)); err == nil && tt.more > 0 {
						child.Close()
					}
				}()
			} else {
				c.w.Close()
			}
			c.limit(deadline)
			if got := c.finish(); len(got) != tt.want {
				t.Errorf("%d bytes, want %d", len(got), tt.want)
			}
		})
	}
	var never capture
	never.close()
}

func TestFilters(t *testing.T) {
	dir := t.TempDir()
	f, err := newFilters(dir)
	if err != nil {
		t.Fatal(err)
	}
	name, err := f.put([]byte("filter"))
	if err != nil {
		t.Fatal(err)
	}
	if f, err = newFilters(dir); err != nil { // as after a restart
		t.Fatal(err)
	}
	if got, err := f.get(name); err != nil || string(got) != "filter" {
		t.Errorf("got %q, %v", got, err)
	}
	if got, err := f.get(""); err != nil || got != nil {
		t.Errorf("no filter: got %q, %v", got, err)
	}
	if err := os.WriteFile(filepath.Join(dir, name), []byte("folter"), 0o600); err != nil {
		t.Fatal(err)
	}
	if f, err = newFilters(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := f.get(name); err == nil {
		t.Error("a damaged filter was used")
	}
}

func TestStopSignal(t *testing.T) {
	image := func(s string) *imagestore.Image {
		i := &imagestore.Image{}
		i.Config.Config.StopSignal = s
		return i
	}
	for name, tt := range map[string]struct {
		config runtimeapi.Signal
		image  string
		want   unix.Signal
		bad    bool
	}{
		"none":         {want: unix.SIGTERM},
		"image":        {image: "SIGQUIT", want: unix.SIGQUIT},
		"image number": {image: "10", want: unix.SIGUSR1},
		"image bad":    {image: "SIGNOTHING", bad: true},
		"config wins":  {config: runtimeapi.Signal_SIGNAL_SIGHUP, image: "SIGQUIT", want: unix.SIGHUP},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := stopSignal(&runtimeapi.ContainerConfig{StopSignal: tt.config}, image(tt.image))
			if (err != nil) != tt.bad || got != tt.want {
				t.Errorf("got %v, %v", got, err)
			}
		})
	}
}

func TestExitReasons(t *testing.T) {
	for name, tt := range map[string]struct {
		state  monitor.State
		reason string
		code   int32
	}{
		"completed":   {monitor.State{}, ReasonCompleted, 0},
		"error":       {monitor.State{ExitCode: 3}, ReasonError, 3},
		"killed":      {monitor.State{ExitCode: 137, Signal: 9}, ReasonError, 137},
		"oom":         {monitor.State{ExitCode: 137, Signal: 9, OOMKilled: true}, ReasonOOMKilled, 137},
		"start error": {monitor.State{ExitCode: 1, StartError: "no such file"}, ReasonStartError, codeStartError},
	} {
		t.Run(name, func(t *testing.T) {
			var c Container
			apply(&c, tt.state)
			if c.Reason != tt.reason || c.ExitCode != tt.code {
				t.Errorf("got %s %d", c.Reason, c.ExitCode)
			}
		})
	}
}

// slow takes its time over the first write.
type slow struct {
	got            bytes.Buffer
	begun, release chan struct{}
}

func (s *slow) Write(p []byte) (int, error) {
	if s.got.Len() == 0 {
		close(s.begun)
		<-s.release
	}
	return s.got.Write(p)
}

// A program's last output reaches a client that is slower than the drain timeout, though one of its children keeps the
// pipe open.
func TestSlowClientGetsAll(t *testing.T) {
	var p plumbing
	w := &slow{begun: make(chan struct{}), release: make(chan struct{})}
	theirs, err := p.output(w)
	if err != nil {
		t.Fatal(err)
	}
	child, err := unix.Dup(int(theirs.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(child)
	want := bytes.Repeat([]byte("0123456789abcdef"), 3000)
	if _, err := theirs.Write(want[:100]); err != nil {
		t.Fatal(err)
	}
	<-w.begun
	if _, err := theirs.Write(want[100:]); err != nil {
		t.Fatal(err)
	}
	p.handedOver()
	for _, f := range p.ours { // as limitDrain some time ago
		_ = f.SetReadDeadline(time.Unix(1, 0))
	}
	close(w.release)
	p.out.Wait()
	if !bytes.Equal(w.got.Bytes(), want) {
		t.Errorf("got %d bytes of %d", w.got.Len(), len(want))
	}
	p.close(true)
}
