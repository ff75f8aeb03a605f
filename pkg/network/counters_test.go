package network

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"unicode/utf8"

	"github.com/seed-9a14075a/cri-server/internal/testns"
)

const titles = "Inter-|   Receive                                                |  Transmit\n" +
	" face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n"

func TestParseCounters(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		want []InterfaceCounters // nil: an error
	}{
		"two": {titles + "    lo:     100       2    3    4    5     6          7         8      900      10   11   12   13    14      15          16\n" +
			"verylongname0:1 2 3 4 5 6 7 8 18446744073709551615 10 11 12 13 14 15 16\n", []InterfaceCounters{
			{"lo", 100, 2, 3, 4, 900, 10, 11, 12}, {"verylongname0", 1, 2, 3, 4, 1<<64 - 1, 10, 11, 12}}},
		"none":         {titles, []InterfaceCounters{}},
		"empty":        {"", nil},
		"half a title": {"Inter-|", nil},
		"half a line":  {titles + "  eth0: 1 2 3", nil},
		"no name":      {titles + "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n", nil},
		"empty name":   {titles + ": 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n", nil},
		"negative":     {titles + "eth0: 1 -2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n", nil},
	} {
		got, err := parseCounters([]byte(c.text))
		if (err != nil) != (c.want == nil) || err == nil && len(got)+len(c.want) > 0 && !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

// What a process's files say of its namespace is what a dump inside says; those of a process in another are not taken for it.
func TestCountersByProcess(t *testing.T) {
	testns.Root(t)
	const own = "/proc/self/ns/net"
	s, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for range 3 {
		if _, err := s.WriteTo(make([]byte, 100), s.LocalAddr()); err != nil {
			t.Fatal(err)
		}
		if _, _, err := s.ReadFrom(make([]byte, 200)); err != nil {
			t.Fatal(err)
		}
	}
	want, err := dumpCounters(own)
	if err != nil {
		t.Fatal(err)
	}
	got, err := countersOf(own, os.Getpid())
	if err != nil || !reflect.DeepEqual(got, want) || len(got) == 0 || got[0].RxBytes < 300 || got[0].TxPackets < 3 {
		t.Errorf("%+v, %v; a dump has %+v", got, err, want)
	}

	c := exec.Command("cat")
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	other := c.Process.Pid
	if got, err := countersOf(own, other); err == nil || !strings.Contains(err.Error(), "another network namespace") {
		t.Errorf("a process elsewhere: %+v, %v", got, err)
	}
	if got, err := Counters(own, other); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("a process elsewhere: %+v, %v", got, err)
	}
	in.Close()
	if err := c.Wait(); err != nil {
		t.Fatal(err)
	}
	for name, pid := range map[string]int{"none": 0, "ended": other} {
		if got, err := Counters(own, pid); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	if _, err := Counters("/run/netns/none", os.Getpid()); err == nil {
		t.Error("a namespace that is not there has counters")
	}
}

// A pod may give its interfaces names of any bytes; what is told of them must be valid in a message, or there is none of any
// pod. Two of them are never told by one name.
func TestCountersOfOddNames(t *testing.T) {
	testns.Root(t)
	const own = "/proc/self/ns/net"
	names := []string{"odd\xff", "odd\xfe", `"odd\xff"`, "ödd"}
	for i := 0; i < len(names); i += 2 {
		if out, err := exec.Command("ip", "link", "add", names[i], "type", "veth", "peer", "name", names[i+1]).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		defer exec.Command("ip", "link", "del", names[i]).Run()
	}
	for what, pid := range map[string]int{"by a process": os.Getpid(), "by a dump": 0} {
		list, err := Counters(own, pid)
		if err != nil {
			t.Fatal(err)
		}
		told := map[string]bool{}
		for _, c := range list {
			if told[c.Name] || !utf8.ValidString(c.Name) {
				t.Errorf("%s: %q", what, c.Name)
			}
			told[c.Name] = true
		}
		for _, want := range []string{"lo", "ödd", `"odd\xff"`, `"odd\xfe"`, `"\"odd\\xff\""`} {
			if !told[want] {
				t.Errorf("%s: %s is not told of: %v", what, want, told)
			}
		}
	}
}

// A pod with thousands of interfaces does not make the list of all pods longer than clients take.
func TestCountersOfTooMany(t *testing.T) {
	for _, at := range []int{0, 5, maxInterfaces - 1, maxInterfaces, 4999} {
		list := make([]InterfaceCounters, 5000)
		for i := range list {
			list[i] = InterfaceCounters{Name: fmt.Sprint("odd", i), RxBytes: uint64(i)}
		}
		list[at].Name = ifName
		told := tellable(list)
		own := slices.IndexFunc(told, func(c InterfaceCounters) bool { return c.Name == ifName })
		if len(told) != maxInterfaces || own < 0 || told[own].RxBytes != uint64(at) {
			t.Errorf("the pod's own is number %d: %d are told of, it is number %d", at, len(told), own)
		}
	}
}
