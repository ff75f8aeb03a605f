package native

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
)

func isOpen(fd int) bool {
	_, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	return err == nil
}

func TestTaskCache(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "tasks"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	cg := &engine.Cgroup{V1: map[string]string{"pids": dir}}
	var c taskCache
	open := func(of *container) *taskFiles {
		t.Helper()
		f, err := c.open(of, cg)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	name := 0
	another := func() *container {
		name++
		return &container{id: fmt.Sprint(name)}
	}
	first, other := another(), another()
	a := open(first)
	if b := open(first); a != b || a.users != 2 || len(a.files) != 1 || a.dirs[0] != dir {
		t.Fatalf("%+v, %+v", a, b)
	}
	c.release(a)
	fd := a.files[0]
	c.forget(first)
	c.forget(first)
	if !isOpen(fd) {
		t.Error("closed although it is used")
	}
	b := open(first)
	if b == a || len(c.last) != 0 {
		t.Error("what was forgotten is kept, or used again")
	}
	c.release(b)
	c.release(a)
	if a.files != nil || b.files != nil {
		t.Error("not closed after the last use")
	}
	first = another()
	kept := open(first)
	c.release(kept)
	for range maxOpen - 1 {
		c.release(open(another()))
	}
	c.release(open(first)) // the latest again
	c.release(open(other))
	if len(c.last) != maxOpen || c.last[0].id != other.id || c.last[1] != kept || !isOpen(kept.files[0]) {
		t.Errorf("%d kept, %v", len(c.last), c.last)
	}
	if _, err := c.open(another(), &engine.Cgroup{V1: map[string]string{"pids": dir, "none": dir + "/none"}}); !errors.Is(err, unix.ENOENT) {
		t.Errorf("no directory: %v", err)
	}
	c.clear()
	if len(c.last) != 0 || kept.files != nil {
		t.Error("not cleared")
	}
}

// An exec finds the files of the one before it, and they go with the container.
func TestTasksStayOpen(t *testing.T) {
	b := newBed(t)
	cg := testCgroup(t, fmt.Sprintf("tasks-%d", os.Getpid()))
	if cg.Unified == "" || len(cg.V1) == 0 {
		t.Skip("needs v1 hierarchies and cgroup2 beside them")
	}
	config := b.config(t, newSpec("/bin/sleep", "600"))
	config.Cgroup = cg
	ct := b.create(t, config)
	if err := ct.Start(testContext(t)); err != nil {
		t.Fatal(err)
	}
	for _, own := range []*engine.Cgroup{nil, cg, cg} {
		e, err := ct.Exec(testContext(t), &engine.ExecConfig{Process: newSpec("/bin/true").Process, Cgroup: own})
		if err != nil {
			t.Fatal(err)
		}
		if st, err := e.Child().Wait(testContext(t)); err != nil || st.Code() != 0 {
			t.Errorf("%+v %v", st, err)
		}
		if n := len(b.tasks.last); (n == 1) != (own != nil) || n > 0 && b.tasks.last[0].users != 0 {
			t.Errorf("files of %d containers are open", n)
		}
	}
	if err := ct.Kill(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := ct.Process().Child().Wait(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if err := ct.Delete(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if len(b.tasks.last) != 0 {
		t.Error("its files are open after the container was deleted")
	}
}

// A cgroup that somebody has made anew is found.
func TestTasksOutdated(t *testing.T) {
	b := newBed(t)
	cg := testCgroup(t, fmt.Sprintf("remade-%d", os.Getpid()))
	if cg.Unified == "" || len(cg.V1) == 0 {
		t.Skip("needs v1 hierarchies and cgroup2 beside them")
	}
	config := b.config(t, newSpec("/bin/sleep", "600"))
	config.Cgroup = cg
	ct := b.create(t, config)
	if err := ct.Start(testContext(t)); err != nil {
		t.Fatal(err)
	}
	exec := func() error {
		e, err := ct.Exec(testContext(t), &engine.ExecConfig{Process: newSpec("/bin/true").Process, Cgroup: cg})
		if err == nil {
			_, err = e.Child().Wait(testContext(t))
		}
		return err
	}
	if err := exec(); err != nil {
		t.Fatal(err)
	}
	dir, pid := cg.V1["pids"], fmt.Appendln(nil, ct.Process().Pid())
	for _, err := range []error{os.WriteFile(filepath.Dir(dir)+"/cgroup.procs", pid, 0), os.Remove(dir), os.Mkdir(dir, 0o755),
		os.WriteFile(dir+"/cgroup.procs", pid, 0)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := exec(); err != nil {
		t.Error(err)
	}
}

// A container that has as many processes as it may have gets none more, and the reason is told.
func TestTasksLimit(t *testing.T) {
	b := newBed(t)
	cg := testCgroup(t, fmt.Sprintf("limit-%d", os.Getpid()))
	if cg.V1["pids"] == "" {
		t.Skip("needs the v1 hierarchy of pids")
	}
	config := b.config(t, newSpec("/bin/sleep", "600"))
	config.Cgroup = cg
	ct := b.create(t, config)
	if err := ct.Start(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(cg.V1["pids"]+"/pids.max", []byte("1"), 0); err != nil {
		t.Fatal(err)
	}
	_, err := ct.Exec(testContext(t), &engine.ExecConfig{Process: newSpec("/bin/true").Process, Cgroup: cg})
	if !errors.Is(err, unix.EAGAIN) {
		t.Errorf("%v", err)
	}
	procs, err := os.ReadFile(cg.V1["pids"] + "/cgroup.procs")
	if err != nil || string(procs) != fmt.Sprintln(ct.Process().Pid()) {
		t.Errorf("left: %q %v", procs, err)
	}
}
