package monitor

import "github.com/klauspost/compress/s2"

// packMax is the largest description that is packed. One of a container that waits for its start carries its whole
// spec and filter, is larger, and is replaced within moments.
const packMax = 8 << 10

// packer makes the descriptions of containers small while they are kept: they say nearly the same of all, which the
// first one serves as a dictionary for. Not for concurrent use.
type packer struct{ dict *s2.Dict }

// pack returns a copy of data that owns its memory.
func (p *packer) pack(data []byte) (packed []byte, ok bool) {
	if len(data) < s2.MinDictSize || len(data) > packMax {
		return data, false
	}
	if p.dict == nil {
		p.dict = s2.MakeDict(append([]byte(nil), data...), nil)
	}
	b := p.dict.Encode(nil, data)
	return append(make([]byte, 0, len(b)), b...), true
}

func (p *packer) unpack(b []byte) ([]byte, error) { return p.dict.Decode(nil, b) }
