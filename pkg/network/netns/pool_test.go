package netns

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/testns"
)

// await waits for what the pool does by itself.
func await(t *testing.T, what string, reached func() bool) {
	t.Helper()
	for deadline := time.Now().Add(testns.Patience(20 * time.Second)); !reached(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: it does not come", what)
		}
	}
}

func (p *Pool) held() (inodes []uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range p.free {
		var st unix.Stat_t
		if unix.Fstat(w.ns, &st) == nil {
			inodes = append(inodes, st.Ino)
		}
	}
	return inodes
}

func descriptors(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// The pool holds as many as pods were made at once, up to its size, hands them out in order, and is filled when no pod is
// being made. What it hands out is what Create makes.
func TestPool(t *testing.T) {
	testns.Root(t)
	if err := SetSysctl("ipv4/conf/default/no_such", "0"); err == nil { // a procfs is open from now on
		t.Fatal("there is no such sysctl")
	}
	before := descriptors(t)
	p := newPool(2, time.Hour, 0)
	if n := len(p.held()); n != 0 {
		t.Errorf("%d namespaces before there was a pod", n)
	}
	var ends []func()
	for range 3 {
		ends = append(ends, p.Begin())
	}
	first, err := p.Create("/run/netns", "cri-pool0")
	if err != nil {
		t.Fatal(err)
	}
	for i, end := range ends {
		if n := len(p.held()); n != 0 {
			t.Errorf("%d are made while %d pods are", n, len(ends)-i)
		}
		end()
	}
	await(t, "two namespaces", func() bool { return len(p.held()) == 2 })
	want := p.held()
	pins, err := List("/run/netns", "cri-")
	if err != nil || len(pins) != 1 {
		t.Errorf("pinned: %v, %v; what is in the pool has no name", pins, err)
	}
	end := p.Begin()
	for i, from := range []string{"the pool", "the pool", "nothing"} {
		path, err := p.Create("/run/netns", fmt.Sprintf("cri-pool%d", i+1))
		if err != nil {
			t.Fatal(err)
		}
		if got := inode(t, path); (i < 2) != (i < 2 && got == want[i]) || i == 2 && (got == want[0] || got == want[1]) {
			t.Errorf("namespace %d is not from %s", i, from)
		}
		checkMade(t, path)
		if err := Remove(path); err != nil {
			t.Error(err)
		}
	}
	end()
	await(t, "a namespace again", func() bool { return len(p.held()) > 0 })
	for range 2 {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
	if n := len(p.held()); n != 0 {
		t.Errorf("%d left in a closed pool", n)
	}
	p.Begin()()
	last, err := p.Create("/run/netns", "cri-pool9")
	if err != nil {
		t.Fatalf("a closed pool: %v", err)
	}
	for _, path := range []string{first, last} {
		if err := Remove(path); err != nil {
			t.Error(err)
		}
	}
	if after := descriptors(t); after != before {
		t.Errorf("%d descriptors, there were %d", after, before)
	}
}

// checkMade looks for what Create promises.
func checkMade(t *testing.T, path string) {
	t.Helper()
	if !Pinned(path) || !Prepared(path) || Check(path) != nil {
		t.Errorf("%s: pinned %v, prepared %v, check %v", path, Pinned(path), Prepared(path), Check(path))
	}
	err := Do(path, func() error {
		lo, err := net.InterfaceByName("lo")
		if err == nil && lo.Flags&net.FlagUp == 0 {
			err = errors.New("lo is down")
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	fd := TakeSocket(path)
	if fd < 0 {
		t.Fatalf("%s: no socket", path)
	}
	defer unix.Close(fd)
	ns, err := unix.IoctlRetInt(fd, unix.SIOCGSKNS) // the socket's namespace; Linux 4.9
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(ns)
	var st unix.Stat_t
	if err := unix.Fstat(ns, &st); err != nil || st.Ino != inode(t, path) {
		t.Errorf("the socket is in namespace %d, not %d: %v", st.Ino, inode(t, path), err)
	}
}

// What was not taken is given back, and a namespace that is too old is not handed out.
func TestPoolAge(t *testing.T) {
	testns.Root(t)
	p := newPool(1, time.Hour, 0)
	p.Begin()()
	await(t, "a namespace", func() bool { return len(p.held()) == 1 })
	p.mu.Lock()
	p.free[0].at = time.Now().Add(-2 * p.age)
	old := p.free[0].ns
	p.mu.Unlock()
	if _, ok := p.take(time.Now()); ok {
		t.Error("an old namespace was handed out")
	}
	if err := unix.Fstat(old, &unix.Stat_t{}); !errors.Is(err, unix.EBADF) {
		t.Errorf("the old namespace is still held: %v", err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	idle := newPool(4, 30*time.Millisecond, 0)
	defer idle.Close()
	for range 3 {
		made := make(chan bool)
		go func() {
			for len(idle.held()) == 0 {
				time.Sleep(time.Millisecond)
			}
			close(made)
		}()
		idle.Begin()()
		<-made
		await(t, "an empty pool", func() bool { return len(idle.held()) == 0 })
	}
}

// Nothing of a pool outlives its process, however that ends: a link into a namespace of the pool goes with it.
func TestPoolKilled(t *testing.T) {
	testns.Root(t)
	if os.Getenv("NETNS_POOL_CHILD") != "" {
		p := newPool(1, time.Hour, 0)
		p.Begin()()
		await(t, "a namespace", func() bool { return len(p.held()) == 1 })
		fmt.Printf("holds %d\n", p.free[0].ns)
		select {}
	}
	c := exec.Command("/proc/self/exe", "-test.run=^TestPoolKilled$")
	c.Env = append(os.Environ(), "NETNS_POOL_CHILD=1")
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	ended := false
	defer func() {
		if !ended {
			_ = c.Process.Kill()
			_ = c.Wait()
		}
	}()
	fd := -1
	for lines := bufio.NewScanner(out); fd < 0 && lines.Scan(); {
		_, _ = fmt.Sscanf(lines.Text(), "holds %d", &fd)
	}
	if fd < 0 {
		t.Fatal("the child holds no namespace")
	}
	ns, err := os.Open(filepath.Join("/proc", fmt.Sprint(c.Process.Pid), "fd", fmt.Sprint(fd)))
	if err != nil {
		t.Fatal(err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "poolkilled"
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: "inside", PeerNamespace: netlink.NsFd(int(ns.Fd()))}
	if err := errors.Join(netlink.LinkAdd(veth), ns.Close()); err != nil {
		t.Fatal(err)
	}
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait() // killed
	ended = true
	await(t, "the end of the namespace", func() bool {
		_, err := netlink.LinkByName("poolkilled")
		return errors.As(err, &netlink.LinkNotFoundError{})
	})
	if pins, err := List("/run/netns", "cri-"); err != nil || len(pins) != 0 {
		t.Errorf("pinned: %v, %v", pins, err)
	}
}
