package native

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// describe prints a change of attributes; it stands here for the tables of the other tests.
func describe(a attrChange) string {
	var s []string
	if a.set != 0 || a.clear == 0 || a.clear == atime {
		s = append(s, fmt.Sprintf("set %x", a.set))
	}
	if a.clear != 0 {
		s = append(s, fmt.Sprintf("clear %x", a.clear))
	}
	return strings.Join(s, " ")
}

// TestStubIsFresh checks that the committed binaries were made from the sources beside them.
func TestStubIsFresh(t *testing.T) {
	sums, err := os.ReadFile("stub/SHA256SUMS")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(sums)), "\n")
	if len(lines) != 6 {
		t.Fatalf("SHA256SUMS has %d lines; run go generate", len(lines))
	}
	for _, line := range lines {
		want, name, _ := strings.Cut(line, "  ")
		b, err := os.ReadFile(filepath.Join("stub", name))
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprintf("%x", sha256.Sum256(b)); got != want {
			t.Errorf("stub/%s has changed since the stubs were built; run go generate", name)
		}
	}
}

// TestStubIsSmall checks what the binaries promise: static, no library, no stack that can be executed, a few KB.
func TestStubIsSmall(t *testing.T) {
	for name, machine := range map[string]elf.Machine{"stub_amd64": elf.EM_X86_64, "stub_arm64": elf.EM_AARCH64} {
		f, err := elf.Open(filepath.Join("stub", name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if f.Machine != machine || f.Type != elf.ET_EXEC {
			t.Errorf("%s: %s %s", name, f.Machine, f.Type)
		}
		for _, p := range f.Progs {
			if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
				t.Errorf("%s is not static: %s", name, p.Type)
			}
			if p.Type == elf.PT_GNU_STACK && p.Flags&elf.PF_X != 0 {
				t.Errorf("%s: executable stack", name)
			}
			if p.Type == elf.PT_LOAD && p.Flags&elf.PF_X != 0 && p.Flags&elf.PF_W != 0 {
				t.Errorf("%s: a segment that can be written and executed", name)
			}
		}
		if st, err := os.Stat(filepath.Join("stub", name)); err != nil || st.Size() > 8<<10 {
			t.Errorf("%s: %d bytes %v", name, st.Size(), err)
		}
	}
}

// TestStubBuilds builds the stub with the compilers that are here. The bytes can differ from the committed ones, which
// another compiler has made; that is reported, not failed.
func TestStubBuilds(t *testing.T) {
	if _, err := exec.LookPath("x86_64-linux-gnu-gcc"); err != nil {
		t.Skip("gcc is missing: ", err)
	}
	dir := t.TempDir()
	if out, err := exec.Command("stub/build.sh", dir).CombinedOutput(); err != nil {
		t.Fatalf("build.sh: %v\n%s", err, out)
	}
	built, err := os.ReadFile(filepath.Join(dir, "stub_amd64"))
	if err != nil {
		t.Fatal(err)
	}
	committed, err := os.ReadFile("stub/stub_amd64")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(built, committed) {
		version, _ := exec.Command("x86_64-linux-gnu-gcc", "--version").Output()
		t.Logf("this compiler makes other bytes than the committed stub's: %s", version)
	}
}

// TestStubRefuses sends orders that this package never sends.
func TestStubRefuses(t *testing.T) {
	b := newBed(t)
	head := func(change func(b []byte)) []byte {
		id, err := newIdentity(newSpec("/bin/true").Process, make([]byte, 8), nil)
		if err != nil {
			t.Fatal(err)
		}
		p := id.payload()
		change(p)
		return p
	}
	set := func(at int, v uint32) func([]byte) {
		return func(b []byte) { binary.NativeEndian.PutUint32(b[at:], v) }
	}
	whole := head(func([]byte) {})
	for name, payload := range map[string][]byte{
		"nothing": {1}, "half a head": whole[:40], "head alone": whole[:208], "an unended string": whole[:len(whole)-1],
		"too many groups": head(set(12, 1<<31)), "most groups": head(set(12, ^uint32(0))), "too many paths": head(set(56, ^uint32(0))),
		"too many args": head(set(60, 1000)), "too much env": head(set(64, 1<<30)), "a long filter": head(set(68, 1<<20)),
	} {
		t.Run(name, func(t *testing.T) {
			s, err := b.fork(launch{})
			if err != nil {
				t.Fatal(err)
			}
			defer s.kill()
			if err := s.settled(); err != nil {
				t.Fatal(err)
			}
			val, _, err := s.call(opExec, 0, payload)
			if !errors.Is(err, unix.EINVAL) || val != stepOrder {
				t.Errorf("%d %v", val, err)
			}
		})
	}
	s, err := b.fork(launch{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.kill()
	if err := s.settled(); err != nil {
		t.Fatal(err)
	}
	for _, op := range []uint32{0, 99, opSetns, opTTY} { // of no kind, or without their descriptor
		if err := s.do(op, 0, nil); err == nil {
			t.Errorf("order %d was obeyed", op)
		}
	}
	if err := s.do(opFSMount, 0, []byte("tmpfs")); !errors.Is(err, unix.EINVAL) {
		t.Errorf("file system without an end: %v", err)
	}
	large := make([]byte, 16)
	binary.NativeEndian.PutUint32(large[4:], maxPayload+1)
	if _, err := unix.Write(s.fd, large); err != nil {
		t.Fatal(err)
	}
	if st, err := s.child.Wait(testContext(t)); err != nil || st.Code() != 1 {
		t.Errorf("after an order that is too large: %v %v", st, err)
	}
}

// TestForeignStub starts the other architecture's stub in an emulator, far enough to answer an order.
func TestForeignStub(t *testing.T) {
	qemu, err := exec.LookPath("qemu-aarch64-static")
	if err != nil {
		t.Skip("qemu-user-static is missing: ", err)
	}
	c, theirs, err := pair()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(qemu, "stub/stub_arm64")
	cmd.ExtraFiles = []*os.File{os.NewFile(uintptr(theirs), "socket")}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	cmd.ExtraFiles[0].Close()
	defer func() {
		c.close() // the stub ends
		_ = cmd.Wait()
	}()
	if err := c.do(99, 0, nil); err == nil || err.Error() != "function not implemented" {
		t.Errorf("unknown order: %v", err)
	}
	if err := c.do(opSetns, 0, nil); err == nil || err.Error() != "bad file descriptor" {
		t.Errorf("setns without a descriptor: %v", err)
	}
	id, err := newIdentity(newSpec("/bin/true").Process, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	id.paths = []string{"/no/such/program", "/bin/true"} // the emulator hands it to the kernel
	if os.Geteuid() != 0 {
		id.cwd = "/no/such/directory" // it may not go further
	}
	s := &stub{conn: c}
	if err := s.become(id); err != nil && os.Geteuid() == 0 || err == nil && os.Geteuid() != 0 {
		t.Errorf("exec: %v", err)
	}
}
