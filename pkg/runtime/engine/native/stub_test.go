package native

import (
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
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
	if len(lines) != 4 {
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
	id, err := newIdentity(newSpec("/no/such/program").Process, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	id.cwd = "/no/such/directory"
	s := &stub{conn: c}
	if err := s.become(id); err == nil || !strings.Contains(err.Error(), "process.cwd") {
		t.Errorf("exec: %v", err)
	}
}
