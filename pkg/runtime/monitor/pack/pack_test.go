package pack

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

func TestPack(t *testing.T) {
	var p Packer
	picture := func(id int) []byte {
		return []byte(fmt.Sprintf(`{"id":"%064x","dirs":[%s]}`, id, strings.Repeat(fmt.Sprintf(`"/sys/fs/cgroup/cpu/pods/%064x",`, id), 12)))
	}
	for id := range 20 {
		in := picture(id)
		b, ok := p.Pack(in)
		if !ok || len(b) > len(in)/4 || cap(b) != len(b) {
			t.Fatalf("%d bytes became %d (%d), %v", len(in), len(b), cap(b), ok)
		}
		out, err := p.Unpack(b)
		if err != nil || !bytes.Equal(in, out) {
			t.Fatalf("%q came back as %q, %v", in, out, err)
		}
	}
	for _, in := range [][]byte{nil, []byte("{}"), bytes.Repeat([]byte("x"), largest+1)} {
		if b, ok := p.Pack(in); ok || !bytes.Equal(b, in) {
			t.Errorf("%d bytes were packed", len(in))
		}
	}
	if _, err := p.Unpack([]byte("\xff\xff\xff")); err == nil {
		t.Error("garbage was unpacked")
	}
}
