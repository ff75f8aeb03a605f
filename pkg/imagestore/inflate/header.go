package inflate

import (
	"encoding/binary"
	"fmt"
)

// Flags of RFC 1952, 2.3.1.
const (
	flagHeaderCRC = 1 << 1
	flagExtra     = 1 << 2
	flagName      = 1 << 3
	flagComment   = 1 << 4
	flagReserved  = 0xe0
)

// header reads a member's header; false at the end of the stream.
func (d *Decoder) header(first bool) (bool, error) {
	if err := d.need(); err != nil {
		return false, err
	}
	if !first {
		if d.pos >= d.end {
			return false, nil
		}
		if d.src[d.pos] == 0 {
			return false, d.zeros()
		}
	}
	var h [10]byte
	if err := d.readFull(h[:]); err != nil {
		return false, err
	}
	if h[0] != 0x1f || h[1] != 0x8b || h[2] != 8 || h[3]&flagReserved != 0 {
		return false, fmt.Errorf("%w: header", ErrCorrupt)
	}
	if h[3]&flagExtra != 0 {
		var n [2]byte
		if err := d.readFull(n[:]); err != nil {
			return false, err
		}
		if err := d.readFull(make([]byte, binary.LittleEndian.Uint16(n[:]))); err != nil {
			return false, err
		}
	}
	for _, f := range []byte{flagName, flagComment} {
		for more := h[3]&f != 0; more; {
			var c [1]byte
			if err := d.readFull(c[:]); err != nil {
				return false, err
			}
			more = c[0] != 0
		}
	}
	if h[3]&flagHeaderCRC != 0 {
		if err := d.readFull(h[:2]); err != nil {
			return false, err
		}
	}
	return true, nil
}

// zeros reads the rest, which must be padding.
func (d *Decoder) zeros() error {
	for {
		for _, b := range d.src[d.pos:d.end] {
			if b != 0 {
				return fmt.Errorf("%w: something follows the last member", ErrCorrupt)
			}
		}
		d.pos = d.end
		if d.eof {
			return nil
		}
		if err := d.need(); err != nil {
			return err
		}
	}
}

// trailer checks a member's checksum and size.
func (d *Decoder) trailer() error {
	if err := d.align(); err != nil {
		return err
	}
	var t [8]byte
	if err := d.readFull(t[:]); err != nil {
		return err
	}
	if binary.LittleEndian.Uint32(t[:]) != d.crc || binary.LittleEndian.Uint32(t[4:]) != d.size {
		return fmt.Errorf("%w: checksum", ErrCorrupt)
	}
	return nil
}
