package runtime

import (
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/seed-9a14075a/cri-server/pkg/cgroupdriver"
	"github.com/seed-9a14075a/cri-server/pkg/imagestore"
	"github.com/seed-9a14075a/cri-server/pkg/operation"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/monitor"
)

// fakeMonitor answers with what the test says.
type fakeMonitor struct {
	Monitor
	state                            monitor.State
	stateErr, startErr, kill, delete error
	deleted                          int
}

func (m *fakeMonitor) State(context.Context, string) (monitor.State, error) {
	return m.state, m.stateErr
}

func (m *fakeMonitor) Start(context.Context, string) (monitor.State, error) {
	return m.state, m.startErr
}
func (m *fakeMonitor) Signal(context.Context, string, unix.Signal) error { return m.kill }
func (m *fakeMonitor) Kill(context.Context, string) error                { return m.kill }
func (m *fakeMonitor) Delete(context.Context, string) error              { m.deleted++; return m.delete }

type fakeCgroups struct {
	cgroupdriver.Driver
	paths, deleted []string
}

func (c *fakeCgroups) List() ([]string, error) { return c.paths, nil }

func (c *fakeCgroups) Delete(_ context.Context, path string) error {
	c.deleted = append(c.deleted, path)
	return nil
}

type fakeImages struct{ imagestore.Store }

func (fakeImages) RemoveSnapshot(context.Context, string) error { return nil }
func (fakeImages) SnapshotUsage(string) (imagestore.Usage, error) {
	return imagestore.Usage{}, errdefs.ErrNotFound
}

func openFake(t *testing.T, dir string) (*Containers, *fakeMonitor, *fakeCgroups) {
	t.Helper()
	m, g := &fakeMonitor{}, &fakeCgroups{}
	c, err := Open(Config{
		RecordsDir: filepath.Join(dir, "records"), StateDir: dir, Monitor: m, Cgroups: g, Images: fakeImages{},
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	return c, m, g
}

func ctrOf(id string, st State) *Container {
	return &Container{ID: id, SandboxID: "5b", State: st, CreatedAt: time.Now(), CgroupPath: "/pod/" + id, StopSignal: unix.SIGTERM,
		Config: &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: id}}}
}

// wait lets the cleaning up after exits end.
func wait(t *testing.T, c *Containers) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := c.Wait(ctx); err != nil {
		t.Fatal(err)
	}
}

// A container that cri-monitor has lost is stopped at once: nobody will ever tell of its end.
func TestStopOfLostContainer(t *testing.T) {
	for name, grace := range map[string]time.Duration{"kill": 0, "signal": time.Minute} {
		t.Run(name, func(t *testing.T) {
			c, m, g := openFake(t, t.TempDir())
			if err := c.publish(ctrOf("aa", Running)); err != nil {
				t.Fatal(err)
			}
			m.kill, m.stateErr = errdefs.ErrNotFound, errdefs.ErrNotFound
			if err := c.Stop(context.Background(), "aa", grace); err != nil {
				t.Fatal(err)
			}
			wait(t, c)
			ctr, err := c.Get("aa")
			if err != nil || ctr.State != Exited || ctr.ExitCode != codeUnknown || ctr.Reason != ReasonUnknown || len(g.deleted) != 1 {
				t.Errorf("%+v, %v, cgroups deleted: %q", ctr, err, g.deleted)
			}
		})
	}
}

func TestStartWhoseAnswerWasLost(t *testing.T) {
	at := time.Unix(1000, 0)
	for name, tt := range map[string]struct {
		status monitor.Status
		want   State
	}{"carried out": {monitor.Running, Running}, "failed": {monitor.Stopped, Exited}} {
		t.Run(name, func(t *testing.T) {
			c, m, _ := openFake(t, t.TempDir())
			if err := c.publish(ctrOf("aa", Created)); err != nil {
				t.Fatal(err)
			}
			m.startErr, m.state = errdefs.ErrFailedPrecondition, monitor.State{ID: "aa", Status: tt.status, Pid: 7, StartedAt: at}
			err := c.Start(context.Background(), "aa")
			ctr, gerr := c.Get("aa")
			if (err == nil) != (tt.want == Running) || gerr != nil || ctr.State != tt.want {
				t.Errorf("%v; %v, %v", err, ctr.State, gerr)
			}
			wait(t, c)
		})
	}
}

func TestStartedWhileAway(t *testing.T) {
	c, _, _ := openFake(t, t.TempDir())
	for id, st := range map[string]State{"aa": Created, "bb": Exited} {
		if err := c.publish(ctrOf(id, st)); err != nil {
			t.Fatal(err)
		}
	}
	for id, want := range map[string]State{"aa": Running, "bb": Exited} {
		c.Started(monitor.State{ID: id, Status: monitor.Running, Pid: 7, StartedAt: time.Now()})
		if ctr, _ := c.Get(id); ctr.State != want {
			t.Errorf("%s is %s", id, ctr.State)
		}
	}
	c.Started(monitor.State{ID: "nobody"})
}

func TestDiesWhileCreated(t *testing.T) {
	c, _, _ := openFake(t, t.TempDir())
	c.set(ctrOf("aa", Creating))
	if !c.Exited(monitor.State{ID: "aa", Status: monitor.Stopped}) {
		t.Error("a container being created is not known")
	}
	if err := c.publish(ctrOf("aa", Created)); !errdefs.IsAborted(err) {
		t.Errorf("publish: %v", err)
	}
	c.drop(ctrOf("aa", Created))
	if len(c.died) != 0 {
		t.Error("remembered for ever")
	}
}

// What a failed create could not take down is listed, can be removed, and does not block its name.
func TestLeftovers(t *testing.T) {
	c, m, _ := openFake(t, t.TempDir())
	ctx := context.Background()
	ctr := ctrOf("aa", Creating)
	if err := c.save(ctr); err != nil {
		t.Fatal(err)
	}
	c.set(ctr)
	if _, err := c.Get("aa"); !errdefs.IsNotFound(err) {
		t.Errorf("its id is nobody's to name: %v", err)
	}
	m.delete = errdefs.ErrUnavailable
	if err := c.takeBack(ctx, ctr); !errdefs.IsUnavailable(err) {
		t.Fatal(err)
	}
	if list := c.List(); len(list) != 1 || list[0].State != Unknown {
		t.Fatalf("listed: %v", list)
	}
	key := Key(ctr.SandboxID, ctr.Config.Metadata)
	if got, err := c.existing(ctx, key, ctr.Config); got != nil || !errdefs.IsUnavailable(err) {
		t.Errorf("a retry while it can't be taken down: %v, %v", got, err)
	}
	m.delete = nil
	if got, err := c.existing(ctx, key, ctr.Config); got != nil || err != nil || c.Known("aa") {
		t.Errorf("a retry when it can: %v, %v", got, err)
	}
}

// The end of a container is seen though it can't be recorded; cri-monitor keeps it for the next start.
func TestEndWithoutRecord(t *testing.T) {
	dir := t.TempDir()
	c, m, _ := openFake(t, dir)
	if err := c.publish(ctrOf("aa", Running)); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(dir, "records")); err != nil {
		t.Fatal(err)
	}
	c.Exited(monitor.State{ID: "aa", Status: monitor.Stopped, ExitCode: 3, FinishedAt: time.Now()})
	wait(t, c)
	if ctr, err := c.Get("aa"); err != nil || ctr.State != Exited || ctr.ExitCode != 3 {
		t.Errorf("%v, %v", ctr, err)
	}
	if m.deleted != 0 {
		t.Error("cri-monitor was told to forget it")
	}
	if err := c.Remove(context.Background(), "aa"); err != nil || m.deleted != 1 {
		t.Errorf("remove: %v, %d deletions", err, m.deleted)
	}
}

func TestBrokenGoesWithItsCgroup(t *testing.T) {
	c, _, g := openFake(t, t.TempDir())
	ctr := &Container{ID: "aa", State: Unknown, Broken: "cut short", Config: &runtimeapi.ContainerConfig{}}
	c.set(ctr)
	g.paths = []string{"/pods/x/aa", "/pods/y/bb"}
	if err := c.Remove(context.Background(), "aa"); err != nil || c.Known("aa") {
		t.Fatal(err)
	}
	for _, p := range g.deleted {
		if p != "/pods/x/aa" {
			t.Errorf("deleted %q", g.deleted)
		}
	}
	if len(g.deleted) == 0 {
		t.Error("its cgroup stays")
	}
}

// StopSandbox puts an end to containers being created, and comes back when they are taken back.
func TestStopSandboxAborts(t *testing.T) {
	c, _, _ := openFake(t, t.TempDir())
	ctr := ctrOf("aa", Creating)
	begun := make(chan bool)
	result := make(chan error, 1)
	go func() {
		_, err := operation.Do(context.Background(), c.ops, "create "+Key("5b", ctr.Config.Metadata), 0,
			func(ctx context.Context, op *operation.Op) (*Container, error) {
				c.set(ctr)
				op.Undo("it", func(ctx context.Context) error { return c.takeBack(ctx, ctr) })
				close(begun)
				<-ctx.Done()
				return nil, ctx.Err()
			})
		result <- err
	}()
	<-begun
	if err := c.StopSandbox(context.Background(), "5b"); err != nil {
		t.Fatal(err)
	}
	if c.Known("aa") {
		t.Error("it is still there")
	}
	if err := <-result; !errdefs.IsFailedPrecondition(err) {
		t.Errorf("its caller got %v", err)
	}
}
