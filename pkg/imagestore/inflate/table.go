package inflate

import (
	"fmt"
	"math/bits"
)

// A table maps the next bits of the stream to a symbol. An entry is
//
//	bit 31      literal: bits 16–23 are the byte
//	bits 16–30  a length's or distance's base, or where the second-level table begins
//	bits 12–15  isTable, isSpecial, isEnd
//	bits 8–11   how many extra bits follow the code, or index a second-level table
//	bits 0–5    the length of the code, of both levels together
type table struct {
	entries [tableMask + 1]uint32
	// fixed: this is the table of fixed codes.
	fixed bool
}

const (
	litBits, distBits = 11, 9
	litMask, distMask = 1<<litBits - 1, 1<<distBits - 1
	// tableMask is above what both levels need for 288 codes of at most 15 bits: 2342 with 11 bits at the first, zlib's
	// examples/enough.c.
	tableMask = 4095

	isLiteral = 1 << 31
	isTable   = 1 << 15
	isSpecial = 1 << 14
	isEnd     = 1 << 13

	maxCode = 15
)

var (
	litSymbols  [288]uint32
	distSymbols [32]uint32
)

// RFC 1951, 3.2.5.
func init() {
	for i := range 256 {
		litSymbols[i] = isLiteral | uint32(i)<<16
	}
	litSymbols[256] = isSpecial | isEnd
	base := uint32(3)
	for i := range 28 {
		extra := uint32(max(0, i/4-1))
		litSymbols[257+i] = base<<16 | extra<<8
		base += 1 << extra
	}
	litSymbols[285] = 258 << 16
	litSymbols[286], litSymbols[287] = isSpecial, isSpecial
	base = 1
	for i := range 30 {
		extra := uint32(max(0, i/2-1))
		distSymbols[i] = base<<16 | extra<<8
		base += 1 << extra
	}
	distSymbols[30], distSymbols[31] = isSpecial, isSpecial
}

func (t *table) fixedLiterals() {
	if t.fixed {
		return
	}
	var lengths [288]uint8
	for i := range lengths {
		switch {
		case i < 144 || i >= 280:
			lengths[i] = 8
		case i < 256:
			lengths[i] = 9
		default:
			lengths[i] = 7
		}
	}
	_ = t.build(lengths[:], litSymbols[:], litBits, false) // a complete code
	t.fixed = true
}

func (t *table) fixedDistances() {
	if t.fixed {
		return
	}
	var lengths [32]uint8
	for i := range lengths {
		lengths[i] = 5
	}
	_ = t.build(lengths[:], distSymbols[:], distBits, false)
	t.fixed = true
}

// build makes the table of the canonical code with these lengths. A code must be complete; with incomplete it may also
// have one symbol of one bit, or none, as RFC 1951 allows for distances.
func (t *table) build(lengths []uint8, symbols []uint32, root uint, incomplete bool) error {
	t.fixed = false
	var count [maxCode + 1]int
	for _, l := range lengths {
		count[l]++
	}
	count[0] = 0
	left, longest := 1, uint(0)
	for l := uint(1); l <= maxCode; l++ {
		left = left<<1 - count[l]
		if left < 0 {
			return fmt.Errorf("%w: over-subscribed code", ErrCorrupt)
		}
		if count[l] > 0 {
			longest = l
		}
	}
	if left > 0 {
		if !incomplete || longest > 1 {
			return fmt.Errorf("%w: incomplete code", ErrCorrupt)
		}
		for i := range t.entries[:1<<root] {
			t.entries[i] = isSpecial
		}
	}
	var next [maxCode + 2]int
	for l := 1; l <= maxCode; l++ {
		next[l+1] = next[l] + count[l]
	}
	var sorted [288]uint16
	for sym, l := range lengths {
		if l > 0 {
			sorted[next[l]] = uint16(sym)
			next[l]++
		}
	}
	t.fill(sorted[:next[longest]], lengths, symbols, root, longest, count)
	return nil
}

// fill enters the symbols, sorted by the length of their codes.
func (t *table) fill(sorted []uint16, lengths []uint8, symbols []uint32, root, longest uint, count [maxCode + 1]int) {
	code, length := uint16(0), uint(1)
	free := uint32(1) << root
	prefix, start, sub := -1, uint32(0), uint(0)
	for _, sym := range sorted {
		l := uint(lengths[sym])
		code <<= l - length
		length = l
		reversed := uint32(bits.Reverse16(code) >> (16 - l))
		code++
		e := symbols[sym] | uint32(l)
		if l <= root {
			for i := reversed; i < 1<<root; i += 1 << l {
				t.entries[i] = e
			}
			count[l]--
			continue
		}
		if p := int(reversed & (1<<root - 1)); p != prefix {
			// The second level is as large as the codes that begin so make it.
			prefix, start, sub = p, free, l-root
			for left := 1 << sub; sub+root < longest; sub++ {
				if left -= count[sub+root]; left <= 0 {
					break
				}
				left <<= 1
			}
			free += 1 << sub
			t.entries[p] = isTable | start<<16 | uint32(sub)<<8 | uint32(root)
		}
		for i := reversed >> root; i < 1<<sub; i += 1 << (l - root) {
			t.entries[start+i] = e
		}
		count[l]--
	}
}

// order is that of the code length code's lengths, RFC 1951, 3.2.7.
var order = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// dynamic reads the codes of a block.
func (d *Decoder) dynamic() error {
	if err := d.need(); err != nil {
		return err
	}
	d.refill()
	nlit, ndist, nlen := int(d.take(5))+257, int(d.take(5))+1, int(d.take(4))+4
	if nlit > 286 || ndist > 30 {
		return fmt.Errorf("%w: %d codes", ErrCorrupt, nlit+ndist)
	}
	var lengths [288 + 32]uint8
	for i := range nlen {
		if i%16 == 0 {
			d.refill()
		}
		lengths[order[i]] = uint8(d.take(3))
	}
	var symbols [19]uint32
	for i := range symbols {
		symbols[i] = uint32(i) << 16
	}
	t := &d.dist // is built anew below
	if err := t.build(lengths[:19], symbols[:], 7, false); err != nil {
		return err
	}
	clear(lengths[:19])
	for i, total := 0, nlit+ndist; i < total; {
		if err := d.need(); err != nil {
			return err
		}
		d.refill()
		e := t.entries[d.bits&(1<<7-1)]
		d.take(uint(e & 63))
		sym := uint8(e >> 16)
		if sym < 16 {
			lengths[i] = sym
			i++
			continue
		}
		var n int
		var v uint8
		switch sym {
		case 16:
			if i == 0 {
				return fmt.Errorf("%w: nothing to repeat", ErrCorrupt)
			}
			n, v = 3+int(d.take(2)), lengths[i-1]
		case 17:
			n = 3 + int(d.take(3))
		default:
			n = 11 + int(d.take(7))
		}
		if i+n > total {
			return fmt.Errorf("%w: too many code lengths", ErrCorrupt)
		}
		for ; n > 0; n-- {
			lengths[i] = v
			i++
		}
	}
	if lengths[256] == 0 {
		return fmt.Errorf("%w: no end of block", ErrCorrupt)
	}
	if err := d.lit.build(lengths[:nlit], litSymbols[:], litBits, true); err != nil {
		return err
	}
	return d.dist.build(lengths[nlit:nlit+ndist], distSymbols[:], distBits, true)
}
