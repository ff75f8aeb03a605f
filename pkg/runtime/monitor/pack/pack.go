// Package pack makes the descriptions of containers small that cri-server keeps for cri-monitor. It is a package of its own
// because cri-monitor itself needs no compression.
package pack

import "github.com/klauspost/compress/s2"

// largest is the largest description that is packed. One of a container that waits for its start carries its whole
// spec and filter, is larger, and is replaced within moments.
const largest = 8 << 10

// Packer makes the descriptions of containers small while they are kept: they say nearly the same of all, which the
// first one serves as a dictionary for. Not for concurrent use. The zero value is ready.
type Packer struct{ dict *s2.Dict }

// Pack returns a copy of data that owns its memory.
func (p *Packer) Pack(data []byte) (packed []byte, ok bool) {
	if len(data) < s2.MinDictSize || len(data) > largest {
		return data, false
	}
	if p.dict == nil {
		p.dict = s2.MakeDict(append([]byte(nil), data...), nil)
	}
	b := p.dict.Encode(nil, data)
	return append(make([]byte, 0, len(b)), b...), true
}

// Unpack gives back what Pack has packed.
func (p *Packer) Unpack(b []byte) ([]byte, error) { return p.dict.Decode(nil, b) }
