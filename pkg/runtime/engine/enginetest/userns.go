package enginetest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

var usernsTests = []test{
	{"userns/new: root file system and identity", []Feature{UserNamespace}, newUserNamespace},
	{"userns/joined: root file system and identity", []Feature{UserNamespace}, joinedUserNamespace},
	{"userns/id-mapped bind", []Feature{UserNamespace, IDMappedMounts}, usernsBind},
	{"userns/user", []Feature{UserNamespace}, usernsUser},
	{"userns/terminal", []Feature{UserNamespace}, usernsTerminal},
	{"userns/exec", []Feature{UserNamespace}, usernsExec},
	{"userns/two containers of a pod", []Feature{UserNamespace}, usernsPod},
}

const (
	mappedTo = 200000
	mapSize  = 65536
)

var idMap = []specs.LinuxIDMapping{{ContainerID: 0, HostID: mappedTo, Size: mapSize}}

func withUserns(c *specs.Spec) {
	namespace(specs.UserNamespace, "")(c)
	c.Linux.UIDMappings, c.Linux.GIDMappings = idMap, idMap
}

func newUserNamespace(t *testing.T, s *suite) { userNamespace(t, s, withUserns) }

// joinedUserNamespace is how a pod has it: one process holds the namespaces, the containers join.
func joinedUserNamespace(t *testing.T, s *suite) { userNamespace(t, s, joinUserns(t)) }

func joinUserns(t *testing.T) func(*specs.Spec) {
	t.Helper()
	holder := hold(t)
	return func(c *specs.Spec) {
		withUserns(c)
		for _, kind := range []specs.LinuxNamespaceType{specs.UserNamespace, specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace} {
			name := kinds[kind]
			if kind == specs.UserNamespace {
				name = "user"
			}
			namespace(kind, nsPath(holder, name))(c)
		}
	}
}

// usernsPod: what one container writes into a shared volume belongs to the same user in the other.
func usernsPod(t *testing.T, s *suite) {
	join := joinUserns(t)
	first := s.live(t, "hostname pod; echo x > /dev/shm/f", join, addCaps("CAP_SYS_ADMIN"))
	second := s.live(t, "hostname; id -u", join)
	equal(t, "inside", second.out.String(), "pod\n0\nready\n")
	for _, ns := range []string{"user", "net", "ipc", "uts"} {
		equal(t, ns, nsOf(t, second.pid(), ns), nsOf(t, first.pid(), ns))
	}
	if nsOf(t, second.pid(), "pid") == nsOf(t, first.pid(), "pid") {
		t.Error("pid is shared without being asked for")
	}
}

func userNamespace(t *testing.T, s *suite, change func(*specs.Spec)) {
	t.Helper()
	b := s.live(t, `cat /proc/self/uid_map; id -u; stat -c '%u:%g' /bin/busybox /home/joe / /dev/null /dev/shm
touch /new && chown 1000:1000 /new && stat -c '%u:%g' /new; hostname inside && hostname; ls /root >/dev/null && echo root`, change, addCaps("CAP_SYS_ADMIN"))
	got := strings.Join(strings.Fields(b.out.String()), " ")
	want := fmt.Sprintf("0 %d %d 0 0:0 1000:1000 0:0 ", mappedTo, mapSize)
	if !strings.HasPrefix(got, want) {
		t.Errorf("inside: %q; want %q…", got, want)
	}
	if !strings.HasSuffix(got, "1000:1000 inside root ready") {
		t.Errorf("inside: %q", got)
	}
	if nsOf(t, b.pid(), "user") == nsOf(t, os.Getpid(), "user") {
		t.Error("user is the host's")
	}
	equal(t, "Uid outside", status(t, b.pid(), "Uid"), fmt.Sprintf("%d %[1]d %[1]d %[1]d", mappedTo))
	for _, f := range []string{"uid_map", "gid_map"} {
		equal(t, f, strings.Join(strings.Fields(read(t, fmt.Sprintf("/proc/%d/%s", b.pid(), f))), " "), fmt.Sprintf("0 %d %d", mappedTo, mapSize))
	}
	// The writable layer stays as it would be without a user namespace: layers are shared between pods.
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(b.dir, "upper/new"), &st); err != nil || st.Uid != 1000 {
		t.Errorf("owner on the host: %d %v", st.Uid, err)
	}
	if m := mountAt(t, b.pid(), "/"); has(m.options, "ro") || has(m.super, "ro") {
		t.Errorf("the root is read-only: %s %s", m.options, m.super)
	}
}

func usernsBind(t *testing.T, s *suite) {
	host := s.hostDir(t)
	out := s.sh(t, "stat -c %u /vol/file /plain/file; echo x > /vol/made; stat -c %u /vol/made", withUserns, withMount(specs.Mount{
		Destination: "/vol", Type: "bind", Source: host, Options: []string{"rbind"}, UIDMappings: idMap, GIDMappings: idMap,
	}), bind(host, "/plain"))
	equal(t, "inside", out, "0\n65534\n0")
	var st unix.Stat_t
	if err := unix.Stat(host+"/made", &st); err != nil || st.Uid != 0 {
		t.Errorf("owner on the host: %d %v", st.Uid, err)
	}
}

func usernsUser(t *testing.T, s *suite) {
	b := s.live(t, "id -u; touch /home/joe/x && stat -c %u /home/joe/x; id -G; grep CapEff /proc/self/status; : > /dev/null && echo null", withUserns, func(c *specs.Spec) {
		c.Process.User = specs.User{UID: 1000, GID: 1000, AdditionalGids: []uint32{44}}
		c.Process.Capabilities = &specs.LinuxCapabilities{}
	})
	equal(t, "inside", b.out.String(), "1000\n1000\n1000 44\nCapEff:\t"+mask(t)+"\nnull\nready\n")
	equal(t, "Uid outside", status(t, b.pid(), "Uid"), fmt.Sprintf("%d %[1]d %[1]d %[1]d", mappedTo+1000))
	equal(t, "Groups outside", status(t, b.pid(), "Groups"), fmt.Sprint(mappedTo+44))
}

func usernsTerminal(t *testing.T, s *suite) {
	b, _ := s.console(t, "tty; echo again > /dev/tty; : > /dev/stdout && echo reopened", withUserns)
	b.start()
	b.line("/dev/pts/0")
	b.line("again")
	b.line("reopened")
	equal(t, "exit code", b.code(), 0)
}

func usernsExec(t *testing.T, s *suite) {
	b := s.live(t, "", withUserns)
	equal(t, "inside", b.run("id -u; touch /tmp/f; stat -c %u /tmp/f; cat /proc/self/uid_map | tr -s ' '"), fmt.Sprintf("0\n0\n 0 %d %d", mappedTo, mapSize))
	x := b.exec("sleep 1000")
	equal(t, "user namespace", nsOf(t, x.p.Pid(), "user"), nsOf(t, b.pid(), "user"))
	equal(t, "Uid outside", status(t, x.p.Pid(), "Uid"), fmt.Sprintf("%d %[1]d %[1]d %[1]d", mappedTo))
}

// hold starts a process of the host in a user namespace with idMap and in net, ipc and uts namespaces owned by it.
func hold(t *testing.T) int {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		t.Skip("busybox-static is missing")
	}
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: mappedTo, Size: mapSize}}
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	// Not os/exec, which would wait for it: the process has a reaper.
	pid, err := syscall.ForkExec(busybox, []string{"cat"}, &syscall.ProcAttr{
		Files: []uintptr{r.Fd(), null.Fd(), null.Fd()},
		Sys: &syscall.SysProcAttr{
			Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
			UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
		},
	})
	if err != nil {
		t.Fatalf("user namespace: %v", err)
	}
	t.Cleanup(func() { w.Close() }) // its standard input ends, and so does it
	return pid
}
