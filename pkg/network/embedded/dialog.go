package embedded

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// dialog is a route netlink socket (rtnetlink(7)) that takes several requests in one system call. The kernel works them off in
// their order, the later ones even if an earlier one failed. For one goroutine at a time.
type dialog struct {
	fd  int
	seq uint32
	buf *[maxAnswer]byte
}

// maxAnswer is more than the kernel puts into one datagram of an answer that is no dump.
const maxAnswer = 16 << 10

// dial opens a socket in the namespace of the calling thread.
func dial() (*dialog, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netlink: %w", err)
	}
	return newDialog(fd)
}

// buffers are of dialogs that are closed: a pod's own is for one exchange.
var buffers = sync.Pool{New: func() any { return new([maxAnswer]byte) }}

// newDialog takes a socket over. It closes it on error.
func newDialog(fd int) (*dialog, error) {
	timeout := unix.NsecToTimeval(netlinkTimeout.Nanoseconds())
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("netlink: %w", err)
	}
	return &dialog{fd: fd, buf: buffers.Get().(*[maxAnswer]byte)}, nil
}

func (d *dialog) close() {
	_ = unix.Close(d.fd)
	buffers.Put(d.buf)
	d.buf = nil
}

// answer is the kernel's to one request.
type answer struct {
	data []byte // of the message that was asked for, without its header
	err  error  // a unix.Errno
}

// do sends requests and returns an answer to each. The error is about the exchange, after which the dialog is of no use.
// The last request must be one that is answered: it asks for something, or has NLM_F_ACK; those before it need not be, for a
// failure is always answered.
func (d *dialog) do(reqs ...*nl.NetlinkRequest) ([]answer, error) {
	var b []byte
	first := d.seq + 1
	for _, r := range reqs {
		d.seq++
		r.Seq, r.Pid = d.seq, 0
		b = append(b, r.Serialize()...)
	}
	if err := unix.Sendto(d.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, fmt.Errorf("netlink: send: %w", err)
	}
	answers := make([]answer, len(reqs))
	// Before its acknowledgement, RTM_NEWLINK with NLM_F_ECHO tells of a link whose making may fail yet.
	ack := reqs[len(reqs)-1].Flags&unix.NLM_F_ACK != 0
	for done := false; !done; {
		n, from, err := unix.Recvfrom(d.fd, d.buf[:], 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("netlink: receive: %w", err)
		}
		if a, ok := from.(*unix.SockaddrNetlink); !ok || a.Pid != 0 {
			continue // not from the kernel
		}
		if done, err = d.read(d.buf[:n], first, answers, ack); err != nil {
			return nil, err
		}
	}
	return answers, nil
}

// read puts a datagram's messages where they belong, and tells whether the last request was answered, or refused; ack: nothing else
// but an acknowledgement is its answer.
func (d *dialog) read(b []byte, first uint32, answers []answer, ack bool) (done bool, err error) {
	for len(b) >= unix.NLMSG_HDRLEN {
		size, kind := int(binary.NativeEndian.Uint32(b)), binary.NativeEndian.Uint16(b[4:])
		i := int(binary.NativeEndian.Uint32(b[8:]) - first)
		if size < unix.NLMSG_HDRLEN || size > len(b) {
			return false, fmt.Errorf("netlink: message of %d bytes in %d: %w", size, len(b), unix.EBADMSG)
		}
		body := b[unix.NLMSG_HDRLEN:size]
		if i >= 0 && i < len(answers) { // else of a former request that was given up
			switch {
			case kind != unix.NLMSG_ERROR:
				answers[i].data = append([]byte(nil), body...)
			case len(body) < 4:
				return false, fmt.Errorf("netlink: error of %d bytes: %w", len(body), unix.EBADMSG)
			default:
				if errno := int32(binary.NativeEndian.Uint32(body)); errno != 0 {
					answers[i].err = unix.Errno(-errno)
				}
			}
			done = done || i == len(answers)-1 && (kind == unix.NLMSG_ERROR || !ack)
		}
		b = b[min(len(b), (size+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1)):]
	}
	return done, nil
}

// linkRequest asks for a link by its index, else by its name; without its statistics.
func linkRequest(name string, index int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, 0)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	req.AddData(msg)
	if index == 0 {
		req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	}
	const skipStats = 1 << 3 // RTEXT_FILTER_SKIP_STATS, Linux 4.4
	req.AddData(nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStats)))
	return req
}

// dialogs are open ones of the callers' namespace.
type dialogs struct {
	mu   sync.Mutex
	free []*dialog
}

func (ds *dialogs) get() (*dialog, error) {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	if n := len(ds.free); n > 0 {
		d := ds.free[n-1]
		ds.free = ds.free[:n-1]
		return d, nil
	}
	return dial()
}

// maxFree is how many stay open for the next attachments.
const maxFree = 2

// put takes a dialog back that is in order.
func (ds *dialogs) put(d *dialog) {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	if len(ds.free) >= maxFree {
		d.close()
		return
	}
	ds.free = append(ds.free, d)
}

func (ds *dialogs) close() {
	ds.mu.Lock()
	defer ds.mu.Unlock()
	for _, d := range ds.free {
		d.close()
	}
	ds.free = nil
}
