package enginetest

import (
	"os"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

var deviceTests = []test{
	{"devices/default", nil, defaultDevices},
	{"devices/given", nil, givenDevices},
	{"devices/denied", nil, deniedDevices},
}

func defaultDevices(t *testing.T, s *suite) {
	out := s.sh(t, `for d in null zero full random urandom tty; do stat -c '%n %F %t:%T %a %u:%g' /dev/$d; done
echo x > /dev/null; head -c 4 /dev/zero | od -An -tx1; echo x 2>/dev/null > /dev/full || echo full; head -c 8 /dev/urandom | wc -c`)
	const kind = " character special file "
	equal(t, "inside", out, "/dev/null"+kind+"1:3 666 0:0\n/dev/zero"+kind+"1:5 666 0:0\n/dev/full"+kind+"1:7 666 0:0\n"+
		"/dev/random"+kind+"1:8 666 0:0\n/dev/urandom"+kind+"1:9 666 0:0\n/dev/tty"+kind+"5:0 666 0:0\n 00 00 00 00\nfull\n8")
}

func givenDevices(t *testing.T, s *suite) {
	out := s.sh(t, `stat -c '%F %t:%T %a %u:%g' /dev/mine /dev/deep/zero /dev/fifo; head -c 2 /dev/deep/zero | wc -c`, func(c *specs.Spec) {
		c.Linux.Devices = []specs.LinuxDevice{
			{Path: "/dev/mine", Type: "c", Major: 1, Minor: 3, FileMode: ptr(os.FileMode(0o640)), UID: ptr(uint32(1)), GID: ptr(uint32(2))},
			{Path: "/dev/deep/zero", Type: "c", Major: 1, Minor: 5, FileMode: ptr(os.FileMode(0o666))},
			{Path: "/dev/fifo", Type: "p", FileMode: ptr(os.FileMode(0o600))},
		}
	})
	equal(t, "inside", out, "character special file 1:3 640 1:2\ncharacter special file 1:5 666 0:0\nfifo 0:0 600 0:0\n2")
}

// deniedDevices: as CRI has it, all is denied but the default devices and making nodes of those.
func deniedDevices(t *testing.T, s *suite) {
	all, err := hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	if all["devices"] == "" && len(all) > 1 {
		t.Skip("no devices hierarchy beside other v1 ones")
	}
	rules := []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
	for _, d := range [][2]int64{{1, 3}, {1, 5}, {1, 7}, {1, 8}, {1, 9}, {5, 0}, {5, 2}} {
		rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &d[0], Minor: &d[1], Access: "rwm"})
	}
	rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: ptr(int64(136)), Access: "rwm"},
		specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: ptr(int64(10)), Minor: ptr(int64(229)), Access: "m"})
	out := s.sh(t, `head -c 1 /dev/zero | wc -c
(: < /dev/fuse2) 2>/dev/null || echo no open
(mknod /tmp/mem c 1 1 && : < /tmp/mem) 2>/dev/null || echo no mem
mknod /tmp/null c 1 3 && echo mknod`, func(c *specs.Spec) {
		c.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/fuse2", Type: "c", Major: 10, Minor: 229, FileMode: ptr(os.FileMode(0o666))}}
		c.Linux.Resources.Devices = rules
	})
	equal(t, "inside", out, "1\nno open\nno mem\nmknod")
}
