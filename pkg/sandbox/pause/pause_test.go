package pause

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/testns"
)

const source = "../../../cmd/pause"

func TestMain(m *testing.M) { testns.Main(m) }

// TestSumsMatchSource fails when the source was changed without building the binaries anew.
func TestSumsMatchSource(t *testing.T) {
	var want string
	for _, name := range []string{"pause.c", "build.sh"} {
		b, err := os.ReadFile(filepath.Join(source, name))
		if err != nil {
			t.Fatal(err)
		}
		want += fmt.Sprintf("%x  %s\n", sha256.Sum256(b), name)
	}
	got, err := os.ReadFile("SHA256SUMS")
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("the binaries are of another source; run cmd/pause/build.sh\n%s", want)
	}
}

// TestRebuild builds the binaries anew and compares, with the compiler that made them.
func TestRebuild(t *testing.T) {
	dir := t.TempDir()
	out, err := exec.Command("gcc", "--version").Output()
	if err != nil || !strings.Contains(string(out), "12.2.0") {
		t.Skip("needs gcc 12.2.0 (Debian 12) for the same bytes")
	}
	if out, err := exec.Command(filepath.Join(source, "build.sh"), dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, arch := range []string{"amd64", "arm64"} {
		got, err := os.ReadFile(filepath.Join(dir, "pause_"+arch))
		if err != nil {
			t.Logf("not compared: %v", err)
			continue
		}
		want, err := os.ReadFile("pause_" + arch)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("pause_%s differs from what cmd/pause/build.sh makes", arch)
		}
	}
}

func TestELF(t *testing.T) {
	for arch, machine := range map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64} {
		f, err := elf.Open("pause_" + arch)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if f.Machine != machine || f.Type != elf.ET_EXEC {
			t.Errorf("%s: %v %v", arch, f.Machine, f.Type)
		}
		for _, p := range f.Progs {
			if p.Type == elf.PT_INTERP || p.Type == elf.PT_LOAD && p.Flags&elf.PF_W != 0 {
				t.Errorf("%s: segment %+v", arch, p.ProgHeader)
			}
		}
	}
}

// start runs pause, as pid 1 of its own pid namespace where flags say so.
func start(t *testing.T, flags uintptr) *exec.Cmd {
	t.Helper()
	dir := t.TempDir()
	for range 2 {
		if root, err := Install(dir); err != nil || root.Path != dir {
			t.Fatal(root, err)
		}
	}
	other := filepath.Join(dir, "other")
	if err := os.Rename(filepath.Join(dir, Path), other); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(other)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	// It takes its name after it has blocked the signals; the file's own name would show too early.
	eventually(t, "the name", func() bool { return strings.HasPrefix(status(cmd.Process.Pid), "Name:\tpause\n") })
	return cmd
}

func status(pid int) string {
	b, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	return string(b)
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

func TestSignals(t *testing.T) {
	testns.Root(t)
	for name, flags := range map[string]uintptr{"pid 1": unix.CLONE_NEWPID, "ordinary": 0} {
		for _, sig := range []syscall.Signal{unix.SIGTERM, unix.SIGINT} {
			t.Run(name+" "+sig.String(), func(t *testing.T) {
				cmd := start(t, flags)
				for _, s := range []syscall.Signal{unix.SIGHUP, unix.SIGUSR1, unix.SIGPIPE, unix.SIGCHLD} {
					_ = cmd.Process.Signal(s)
				}
				_ = cmd.Process.Signal(sig)
				if err := cmd.Wait(); err != nil {
					t.Errorf("exit: %v", err)
				}
			})
		}
	}
}

// TestReaps orphans many processes to pause in its pid namespace.
func TestReaps(t *testing.T) {
	testns.Root(t)
	cmd := start(t, unix.CLONE_NEWPID)
	pid := cmd.Process.Pid
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	// A session of orphans: the shell's children outlive it and are handed to pause.
	enter := exec.CommandContext(ctx, "nsenter", "-t", strconv.Itoa(pid), "-p", "/bin/busybox", "sh", "-c",
		"for i in 1 2 3 4 5 6 7 8; do (sleep 0.05 & exec sleep 0.01) & done")
	if out, err := enter.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	eventually(t, "no child is left", func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
		return err == nil && len(bytes.TrimSpace(b)) == 0
	})
}
