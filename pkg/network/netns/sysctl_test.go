package netns

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/testns"
)

// TestSetSysctl writes in many namespaces, from several threads: each has its own value, and the caller's stays.
func TestSetSysctl(t *testing.T) {
	testns.Root(t)
	const name = "ipv4/conf/default/rp_filter"
	read := func() string {
		b, err := os.ReadFile("/proc/sys/net/" + name)
		if err != nil {
			t.Error(err)
		}
		return strings.TrimSpace(string(b))
	}
	before := read()
	for i := range 4 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			path, err := Create("/run/netns", fmt.Sprintf("cri-sysctl%d", i))
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := Remove(path); err != nil {
					t.Error(err)
				}
			}()
			for n := range sysctlUses { // four times as many as one instance serves
				want := fmt.Sprint((i + n) % 3)
				err := Do(path, func() error {
					if err := SetSysctl(name, want); err != nil {
						return err
					}
					if err := SetSysctl(name, want); err != nil { // as it is
						return err
					}
					if got := read(); got != want {
						return fmt.Errorf("%s is %s, not %s", name, got, want)
					}
					return nil
				})
				if err != nil {
					t.Fatal(err)
				}
			}
			err = Do(path, func() error { return SetSysctl("ipv4/conf/nolink/rp_filter", "1") })
			if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "/proc/sys/net/ipv4/conf/nolink/rp_filter") {
				t.Errorf("no such name: %v", err)
			}
			if err := Do(path, func() error { return SetSysctl(name, "many") }); err == nil {
				t.Error("a value that is no number was taken")
			}
		})
	}
	t.Cleanup(func() {
		if after := read(); after != before {
			t.Errorf("the caller's is %s, was %s", after, before)
		}
	})
}

// Where no procfs can be made, or the one that was made is of no use, /proc serves; and one is tried again later.
func TestSetSysctlWithoutProcfs(t *testing.T) {
	testns.Root(t)
	const name = "ipv4/conf/default/rp_filter"
	path, err := Create("/run/netns", "cri-noproc")
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		freshProc = newProc
		sysctls.uses = sysctlUses // so that the next user makes one
		if err := Remove(path); err != nil {
			t.Error(err)
		}
	}()
	for what, tt := range map[string]struct {
		make func() (int, error)
		left int // what is used instead
	}{
		"may not":     {func() (int, error) { return -1, unix.EPERM }, unix.AT_FDCWD},
		"refused":     {func() (int, error) { return -1, unix.EINVAL }, unix.AT_FDCWD},
		"no room":     {func() (int, error) { return -1, unix.EMFILE }, unix.AT_FDCWD},
		"of no use":   {func() (int, error) { return unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0) }, 0},
		"as it is":    {newProc, 0},
		"of no use 2": {func() (int, error) { return unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0) }, 0},
	} {
		t.Run(what, func(t *testing.T) {
			tries := 0
			freshProc = func() (int, error) { tries++; return tt.make() }
			sysctls.uses = sysctlUses
			for i := range 2 * (sysctlUses + 1) {
				want := fmt.Sprint(i % 3)
				err := Do(path, func() error {
					if err := SetSysctl(name, want); err != nil {
						return err
					}
					b, err := os.ReadFile("/proc/sys/net/" + name)
					if err == nil && strings.TrimSpace(string(b)) != want {
						err = fmt.Errorf("it is %s, not %s", b, want)
					}
					return err
				})
				if err != nil {
					t.Fatal(err)
				}
			}
			if tries != 2 || tt.left != 0 && sysctls.dir != tt.left {
				t.Errorf("%d tries for two instances' uses, and %d is used", tries, sysctls.dir)
			}
			if err := SetSysctl("ipv4/conf/nolink/rp_filter", "1"); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("no such name: %v", err)
			}
		})
	}
}
