package netns

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

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
