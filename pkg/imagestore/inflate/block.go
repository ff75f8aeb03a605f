package inflate

import (
	"encoding/binary"
	"fmt"
)

// huffman decodes the symbols of one block. The state is in local variables: the compiler keeps those in registers.
func (d *Decoder) huffman() error {
	lit, dist := &d.lit.entries, &d.dist.entries
	for {
		if err := d.need(); err != nil {
			return err
		}
		if d.op > window+Chunk-3 {
			if err := d.emit(); err != nil {
				return err
			}
		}
		src, dst := d.src, d.dst
		pos, op, bits, nbits := d.pos, d.op, d.bits, d.nbits
		// Each turn loads twice, moving 7 bytes at most each time, and writes at most 3 + maxMatch bytes.
		lastPos, lastOp := d.end-32, window+Chunk-3
		if d.eof {
			lastPos = d.end + pad - 32
		}
		for pos <= lastPos && op <= lastOp {
			bits |= binary.LittleEndian.Uint64(src[pos:]) << (nbits & 63)
			pos += int((63 - nbits) >> 3)
			nbits |= 56
			// Three literals take at most 33 bits with the main table; a length and its extra bits 20.
			e := lit[bits&litMask]
			if e&isLiteral != 0 {
				bits >>= e & 63
				nbits -= uint(e & 63)
				dst[op] = byte(e >> 16)
				op++
				e = lit[bits&litMask]
				if e&isLiteral != 0 {
					bits >>= e & 63
					nbits -= uint(e & 63)
					dst[op] = byte(e >> 16)
					op++
					e = lit[bits&litMask]
					if e&isLiteral != 0 {
						bits >>= e & 63
						nbits -= uint(e & 63)
						dst[op] = byte(e >> 16)
						op++
						continue
					}
				}
			}
			if e&isTable != 0 {
				e = lit[(uint(e>>16)&0x7fff+uint(bits>>litBits)&(1<<(e>>8&15)-1))&tableMask]
				if e&isLiteral != 0 {
					bits >>= e & 63
					nbits -= uint(e & 63)
					dst[op] = byte(e >> 16)
					op++
					continue
				}
			}
			if e&isSpecial != 0 {
				d.pos, d.op, d.bits, d.nbits = pos, op, bits>>(e&63), nbits-uint(e&63)
				if e&isEnd == 0 {
					return fmt.Errorf("%w: no such code", ErrCorrupt)
				}
				return nil
			}
			bits >>= e & 63
			extra := e >> 8 & 15
			length := int(e>>16) + int(bits&(1<<(extra&15)-1))
			bits >>= extra & 63
			nbits -= uint(e&63 + extra)
			bits |= binary.LittleEndian.Uint64(src[pos:]) << (nbits & 63)
			pos += int((63 - nbits) >> 3)
			nbits |= 56
			e = dist[bits&distMask]
			if e&isTable != 0 {
				e = dist[(uint(e>>16)&0x7fff+uint(bits>>distBits)&(1<<(e>>8&15)-1))&tableMask]
			}
			if e&isSpecial != 0 {
				return fmt.Errorf("%w: no such distance", ErrCorrupt)
			}
			bits >>= e & 63
			extra = e >> 8 & 15
			distance := int(e>>16&0x7fff) + int(bits&(1<<(extra&15)-1))
			bits >>= extra & 63
			nbits -= uint(e&63 + extra)
			if distance > op-d.base {
				return fmt.Errorf("%w: distance before the start", ErrCorrupt)
			}
			copyMatch(dst, op, distance, length)
			op += length
		}
		d.pos, d.op, d.bits, d.nbits = pos, op, bits, nbits
	}
}

// copyMatch copies length bytes from distance before op to op. It may write slack bytes more.
func copyMatch(dst []byte, op, distance, length int) {
	switch {
	case distance >= 8 && length <= 32:
		s, t := dst[op-distance:], dst[op:]
		for i := 0; i < length; i += 8 {
			binary.LittleEndian.PutUint64(t[i:], binary.LittleEndian.Uint64(s[i:]))
		}
	case distance >= length:
		copy(dst[op:op+length], dst[op-distance:])
	case distance == 1:
		t, b := dst[op:op+length], dst[op-1]
		for i := range t {
			t[i] = b
		}
	default:
		for start, end := op-distance, op+length; op < end; { // what was copied is copied again: the piece doubles
			op += copy(dst[op:end], dst[start:op])
		}
	}
}
