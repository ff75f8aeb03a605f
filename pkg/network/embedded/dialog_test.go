package embedded

import (
	"encoding/binary"
	"errors"
	"slices"
	"testing"

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
	}{
		"nothing":        {},
		"half a header":  {b: ack[:10]},
		"acknowledged":   {b: ack, done: true},
		"one failed":     {b: slices.Concat(failed, ack), done: true, want: [2]error{unix.EEXIST, nil}},
		"failed only":    {b: failed, want: [2]error{unix.EEXIST, nil}},
		"an answer":      {b: message(unix.RTM_NEWLINK, first+1, 1, 2), done: true},
		"of another":     {b: slices.Concat(message(unix.NLMSG_ERROR, first-1, -1), message(unix.NLMSG_ERROR, first+2, -1))},
		"longer than it": {b: ack[:len(ack)-1], bad: true},
		"no length":      {b: make([]byte, 16), bad: true},
		"error of none":  {b: message(unix.NLMSG_ERROR, first), bad: true},
	} {
		t.Run(name, func(t *testing.T) {
			answers := make([]answer, 2)
			done, err := (&dialog{}).read(tt.b, first, answers)
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
	if _, err := (answer{data: []byte{1}}).link(); err == nil {
		t.Error("a link of one byte")
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
		if l, err := answers[2].link(); err != nil || l.Attrs().Name != "lo" || l.Attrs().Index != 1 {
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
