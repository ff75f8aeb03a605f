package testns

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { Main(m) }

func TestIsolated(t *testing.T) {
	Root(t)
	var st unix.Statfs_t
	if err := unix.Statfs("/run", &st); err != nil || st.Type != unix.TMPFS_MAGIC {
		t.Errorf("/run is not a tmpfs: %v %x", err, st.Type)
	}
	entries, err := os.ReadDir("/sys/class/net")
	_ = entries
	if err != nil {
		t.Skip("no /sys")
	}
}
