package cgroupdriver

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"sync/atomic"
)

// quiet is a connection to systemd on which nothing is heard but answers, and the signal that a job is done. systemd tells those
// who are connected to it of each change of each unit, some ten times while a scope comes and goes, and to decode all that
// costs more than all else here. It also reads ahead, so that a message is not three system calls.
//
// It knows as much of D-Bus as that takes (D-Bus specification, "Message Format"); what it can't make out, it lets pass.
type quiet struct {
	net.Conn
	framed atomic.Bool // authentication, which is lines of text, is over

	buf  [4096]byte
	r, w int // what is in buf and not looked at yet
	pass int // bytes of the message under way that the caller gets
	skip int // or does not get
}

// fixedHeader is the length of a message's header up to, but without, its fields.
const fixedHeader = 16

// Write sees where authentication ends: systemd says nothing more before it has read this line.
func (q *quiet) Write(b []byte) (int, error) {
	if !q.framed.Load() && bytes.Equal(b, []byte("BEGIN\r\n")) {
		q.framed.Store(true)
	}
	return q.Conn.Write(b)
}

// Read is called by one goroutine at a time.
func (q *quiet) Read(p []byte) (int, error) {
	if !q.framed.Load() {
		return q.Conn.Read(p)
	}
	for {
		switch {
		case q.pass > 0:
			n := min(len(p), q.pass)
			if q.r == q.w {
				n, err := q.Conn.Read(p[:n])
				q.pass -= n
				return n, err
			}
			n = copy(p[:n], q.buf[q.r:q.w])
			q.r, q.pass = q.r+n, q.pass-n
			return n, nil
		case q.skip > 0:
			if err := q.ahead(1); err != nil {
				return 0, err
			}
			n := min(q.skip, q.w-q.r)
			q.r, q.skip = q.r+n, q.skip-n
		default:
			if err := q.next(); err != nil {
				return 0, err
			}
		}
	}
}

// next looks at the message that begins here, and sets pass or skip.
func (q *quiet) next() error {
	if err := q.ahead(fixedHeader); err != nil {
		return err
	}
	h := q.buf[q.r : q.r+fixedHeader]
	var order binary.ByteOrder = binary.LittleEndian
	if h[0] == 'B' {
		order = binary.BigEndian
	}
	body, fields := int(order.Uint32(h[4:])), int(order.Uint32(h[12:]))
	length := fixedHeader + (fields+7)&^7 + body
	const signal = 4
	if h[1] != signal || fields > len(q.buf)-fixedHeader {
		q.pass = length
		return nil
	}
	if err := q.ahead(fixedHeader + fields); err != nil {
		return err
	}
	if unheard(q.buf[q.r+fixedHeader:q.r+fixedHeader+fields], order) {
		q.skip = length
	} else {
		q.pass = length
	}
	return nil
}

// ahead reads until there are n bytes, at most len(buf), to look at. The end inside of a message is an error.
func (q *quiet) ahead(n int) error {
	if q.w-q.r >= n {
		return nil
	}
	q.w, q.r = copy(q.buf[:], q.buf[q.r:q.w]), 0
	for q.w < n {
		m, err := q.Conn.Read(q.buf[q.w:])
		q.w += m
		if err == io.EOF && q.w > 0 && q.w < n {
			err = io.ErrUnexpectedEOF
		}
		if err != nil && q.w < n {
			return err
		}
	}
	return nil
}

// unheard tells by a signal's header fields, an array of a code with a variant each, whether it is one of systemd's that nobody
// here listens to.
func unheard(b []byte, order binary.ByteOrder) bool {
	const ofInterface, ofMember = 2, 3
	var iface, member string
	for at := 0; at < len(b); at = (at + 7) &^ 7 {
		if len(b)-at < 4 || b[at+1] != 1 || b[at+3] != 0 { // a signature of one letter
			return false
		}
		code, kind := b[at], b[at+2]
		at += 4
		switch kind {
		case 's', 'o':
			if len(b)-at < 4 {
				return false
			}
			n := int(order.Uint32(b[at:]))
			if n > len(b)-at-5 {
				return false
			}
			text := string(b[at+4 : at+4+n])
			at += 4 + n + 1
			switch code {
			case ofInterface:
				iface = text
			case ofMember:
				member = text
			}
		case 'g':
			if len(b)-at < 1 {
				return false
			}
			at += 1 + int(b[at]) + 1
		case 'u':
			at += 4
		default:
			return false
		}
	}
	return iface == "org.freedesktop.DBus.Properties" || iface == sdManager && member != "JobRemoved"
}
