package cgroupdriver

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/godbus/dbus/v5"
)

// chunks is a connection that gives so many bytes at a time.
type chunks struct {
	net.Conn
	r    io.Reader
	size int
}

func (c *chunks) Read(p []byte) (int, error)  { return c.r.Read(p[:min(len(p), c.size)]) }
func (c *chunks) Write(p []byte) (int, error) { return len(p), nil }

func message(t *testing.T, order binary.ByteOrder, kind dbus.Type, iface, member string, body ...any) []byte {
	t.Helper()
	m := dbus.Message{Type: kind, Headers: map[dbus.HeaderField]dbus.Variant{}}
	if kind == dbus.TypeSignal {
		m.Headers[dbus.FieldPath] = dbus.MakeVariant(dbus.ObjectPath(sdPath))
		m.Headers[dbus.FieldInterface] = dbus.MakeVariant(iface)
		m.Headers[dbus.FieldMember] = dbus.MakeVariant(member)
	} else {
		m.Headers[dbus.FieldReplySerial] = dbus.MakeVariant(uint32(7))
	}
	m.Headers[dbus.FieldSender] = dbus.MakeVariant("org.freedesktop.systemd1")
	if len(body) > 0 {
		m.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(body...))
		m.Body = body
	}
	var b bytes.Buffer
	if err := m.EncodeTo(&b, order); err != nil {
		t.Fatal(err)
	}
	raw := b.Bytes()
	order.PutUint32(raw[8:], 1) // the serial, which is the connection's to set
	return raw
}

// longHeader is a signal whose header is longer than what is read ahead.
func longHeader(t *testing.T, order binary.ByteOrder) []byte {
	t.Helper()
	m := dbus.Message{Type: dbus.TypeSignal, Headers: map[dbus.HeaderField]dbus.Variant{
		dbus.FieldPath:      dbus.MakeVariant(dbus.ObjectPath(strings.Repeat("/long", 2000))),
		dbus.FieldInterface: dbus.MakeVariant(sdManager), dbus.FieldMember: dbus.MakeVariant("UnitNew")}}
	var b bytes.Buffer
	if err := m.EncodeTo(&b, order); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestQuiet(t *testing.T) {
	const properties = "org.freedesktop.DBus.Properties"
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		said := [][]byte{
			message(t, order, dbus.TypeSignal, sdManager, "UnitNew", "cri-1.scope", dbus.ObjectPath("/a")),
			message(t, order, dbus.TypeMethodReply, "", "", dbus.ObjectPath("/job/1")),
			message(t, order, dbus.TypeSignal, properties, "PropertiesChanged", "x", strings.Repeat("long", 3000)),
			message(t, order, dbus.TypeSignal, sdManager, "JobRemoved", uint32(1), dbus.ObjectPath("/job/1"), "cri-1.scope", "done"),
			message(t, order, dbus.TypeSignal, sdManager, "UnitRemoved"),
			message(t, order, dbus.TypeSignal, "org.freedesktop.DBus", "NameAcquired", ":1.1"),
			message(t, order, dbus.TypeSignal, properties, "PropertiesChanged"),
			message(t, order, dbus.TypeMethodReply, "", "", strings.Repeat("more than is read ahead", 1000)),
			message(t, order, dbus.TypeSignal, sdManager, strings.Repeat("A", 200)),
			longHeader(t, order),
		}
		want := bytes.Join([][]byte{said[1], said[3], said[5], said[7], said[9]}, nil)
		for _, size := range []int{1, 7, 100, 4096, 1 << 20} {
			q := &quiet{Conn: &chunks{r: io.MultiReader(strings.NewReader("OK 1234\r\n"), bytes.NewReader(bytes.Join(said, nil))), size: size}}
			line := make([]byte, 9)
			if _, err := io.ReadFull(q, line); err != nil || string(line) != "OK 1234\r\n" {
				t.Fatalf("%q, %v", line, err)
			}
			if _, err := q.Write([]byte("BEGIN\r\n")); err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(q)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%v, %d bytes at a time: %d bytes of %d, %v", order, size, len(got), len(want), err)
			}
		}
	}
}

// TestQuietBroken: what ends in the middle is an error, and what is no D-Bus passes, or ends with what there is.
func TestQuietBroken(t *testing.T) {
	whole := message(t, binary.LittleEndian, dbus.TypeSignal, sdManager, "UnitNew", "cri-1.scope")
	for n := range len(whole) {
		q := &quiet{Conn: &chunks{r: bytes.NewReader(whole[:n]), size: 10}}
		q.framed.Store(true)
		got, err := io.ReadAll(q)
		if len(got) > 0 || n > 0 && n < fixedHeader && !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("cut after %d: %d bytes, %v", n, len(got), err)
		}
	}
	odd := slices.Clone(whole)
	odd[fixedHeader+2] = '?' // the type of the first field
	q := &quiet{Conn: &chunks{r: bytes.NewReader(odd), size: 4096}}
	q.framed.Store(true)
	if got, err := io.ReadAll(q); err != nil || !bytes.Equal(got, odd) {
		t.Errorf("a type of its own: %d bytes, %v", len(got), err)
	}
}

func FuzzQuiet(f *testing.F) {
	f.Add([]byte("l\x04\x00\x01\x00\x00\x00\x00\x01\x00\x00\x00\x08\x00\x00\x00\x01\x01s\x00\x00\x00\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		q := &quiet{Conn: &chunks{r: bytes.NewReader(b), size: 64}}
		q.framed.Store(true)
		if got, _ := io.ReadAll(q); len(got) > len(b) {
			t.Errorf("%d bytes of %d", len(got), len(b))
		}
	})
}
