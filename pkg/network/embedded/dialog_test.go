package embedded

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/testns"
)

func TestMain(m *testing.M) { testns.Main(m) }

// message is a netlink message with a body of 32-bit words.
func message(kind uint16, seq uint32, words ...int32) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(unix.NLMSG_HDRLEN+4*len(words)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, 0)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = binary.NativeEndian.AppendUint32(b, 0)
	for _, w := range words {
		b = binary.NativeEndian.AppendUint32(b, uint32(w))
	}
	return b
}

func TestDialogReads(t *testing.T) {
	const first = 7
	failed := message(unix.NLMSG_ERROR, first, -int32(unix.EEXIST))
	ack := message(unix.NLMSG_ERROR, first+1, 0)
	for name, tt := range map[string]struct {
		b    []byte
		done bool
		want [2]error
		bad  bool
		ack  bool
	}{
		"nothing":       {},
		"half a header": {b: ack[:10]},
		"acknowledged":  {b: ack, done: true},
		"one failed":    {b: slices.Concat(failed, ack), done: true, want: [2]error{unix.EEXIST, nil}},
		"failed only":   {b: failed, want: [2]error{unix.EEXIST, nil}},
		"an answer":     {b: message(unix.RTM_NEWLINK, first+1, 1, 2), done: true},
		"an echo":       {b: message(unix.RTM_NEWLINK, first+1, 1, 2), ack: true},
		"an echo, done": {b: slices.Concat(message(unix.RTM_NEWLINK, first+1, 1, 2), ack), ack: true, done: true},
		"an echo, failed": {b: slices.Concat(message(unix.RTM_NEWLINK, first+1, 1, 2), message(unix.NLMSG_ERROR, first+1, -int32(unix.EBUSY))),
			ack: true, done: true, want: [2]error{nil, unix.EBUSY}},
		"of another":     {b: slices.Concat(message(unix.NLMSG_ERROR, first-1, -1), message(unix.NLMSG_ERROR, first+2, -1))},
		"longer than it": {b: ack[:len(ack)-1], bad: true},
		"no length":      {b: make([]byte, 16), bad: true},
		"error of none":  {b: message(unix.NLMSG_ERROR, first), bad: true},
	} {
		t.Run(name, func(t *testing.T) {
			answers := make([]answer, 2)
			done, err := (&dialog{}).read(tt.b, first, answers, tt.ack)
			if (err != nil) != tt.bad || done != tt.done {
				t.Fatalf("%v, %v", done, err)
			}
			for i, a := range answers {
				if !errors.Is(a.err, tt.want[i]) {
					t.Errorf("answer %d: %v", i, a.err)
				}
			}
		})
	}
	for name, data := range map[string][]byte{
		"of one byte":                  {1},
		"with an attribute of no size": append(make([]byte, unix.SizeofIfInfomsg), 0, 0, 3, 0),
		"with an attribute cut short":  append(make([]byte, unix.SizeofIfInfomsg), 9, 0, 3, 0, 'l', 'o'),
		"of a kind cut short":          append(make([]byte, unix.SizeofIfInfomsg), 8, 0, unix.IFLA_LINKINFO, 0, 9, 0, 1, 0),
	} {
		if l, err := (answer{data: data}).device(); err == nil {
			t.Errorf("a link %s: %+v", name, l)
		}
	}
}

// What one request of several fails with is told of it alone, and the others are done.
func TestDialog(t *testing.T) {
	testns.Root(t)
	d, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	for range 2 {
		answers, err := d.do(linkRequest("none", 0), portRouteRequest(1<<30), linkRequest("lo", 0))
		if err != nil {
			t.Fatal(err)
		}
		if answers[0].err != unix.ENODEV || answers[1].err == nil {
			t.Errorf("%v, %v", answers[0].err, answers[1].err)
		}
		if l, err := answers[2].device(); err != nil || l.name != "lo" || l.index != 1 {
			t.Errorf("%+v, %v", l, err)
		}
	}
	var ds dialogs
	defer ds.close()
	for range 2 * maxFree {
		one, err := dial()
		if err != nil {
			t.Fatal(err)
		}
		ds.put(one)
	}
	if len(ds.free) != maxFree {
		t.Errorf("%d stay open", len(ds.free))
	}
	if one, err := ds.get(); err != nil {
		t.Error(err)
	} else if _, err := one.do(nl.NewNetlinkRequest(unix.RTM_GETLINK, unix.NLM_F_ACK)); err != nil {
		t.Error(err)
	} else {
		one.close()
	}
}

// What is read of a link is what the netlink package reads.
func TestDevice(t *testing.T) {
	testns.Root(t)
	ip(t, "link", "add", "device0", "type", "bridge")
	defer ip(t, "link", "del", "device0")
	ip(t, "link", "add", "device1", "master", "device0", "group", "77", "up", "type", "veth", "peer", "name", "device2")
	defer ip(t, "link", "del", "device1")
	ip(t, "link", "set", "device2", "up", "promisc", "on")
	d, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	for _, name := range []string{"lo", "device0", "device1", "device2"} {
		answers, err := d.do(linkRequest(name, 0))
		if err != nil {
			t.Fatal(err)
		}
		got, err := answers[0].device()
		if err != nil {
			t.Fatal(err)
		}
		l, err := netlink.LinkDeserialize(nil, answers[0].data)
		if err != nil {
			t.Fatal(err)
		}
		a := l.Attrs()
		kind := l.Type()
		if name == "lo" {
			kind = "" // the package calls it device
		}
		want := device{name: a.Name, kind: kind, index: a.Index, parent: a.ParentIndex, master: a.MasterIndex, flags: a.RawFlags,
			group: a.Group, promisc: uint32(a.Promisc), oper: uint8(a.OperState), mac: a.HardwareAddr}
		if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
			t.Errorf("%+v\n%+v", got, want)
		}
	}
}
