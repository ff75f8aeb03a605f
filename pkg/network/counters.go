package network

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/network/netns"
)

// InterfaceCounters are what one interface has received and sent since it was made.
type InterfaceCounters struct {
	Name                                    string
	RxBytes, RxPackets, RxErrors, RxDropped uint64
	TxBytes, TxPackets, TxErrors, TxDropped uint64
}

// Counters reads the counters of the interfaces in a network namespace, up to maxInterfaces. pid is a process that is likely in it, through which
// they are read without a thread's entering it; 0 for none.
func Counters(netnsPath string, pid int) ([]InterfaceCounters, error) {
	if pid > 0 {
		if list, err := countersOf(netnsPath, pid); err == nil {
			return tellable(list), nil
		}
	}
	list, err := dumpCounters(netnsPath)
	if err != nil {
		return nil, fmt.Errorf("interface counters of %s: %w", netnsPath, err)
	}
	return tellable(list), nil
}

// maxInterfaces is how many of a pod are told of.
const maxInterfaces = 128

// tellable makes of a pod's interfaces what fits into a list of all pods: one with CAP_NET_ADMIN may have thousands, which alone
// are more than clients take, and give them names that no message can have, as the kernel takes nearly any bytes
// (dev_valid_name). Of too many the pod's own stays, and the first of the others. What is no text is quoted, and what begins with
// a quote too, so that no two have one name.
func tellable(list []InterfaceCounters) []InterfaceCounters {
	if len(list) > maxInterfaces {
		own := slices.IndexFunc(list, func(c InterfaceCounters) bool { return c.Name == ifName })
		if own >= maxInterfaces {
			list[maxInterfaces-1] = list[own]
		}
		list = list[:maxInterfaces]
	}
	for i, c := range list {
		if !utf8.ValidString(c.Name) || strings.HasPrefix(c.Name, `"`) {
			list[i].Name = strconv.Quote(c.Name)
		}
	}
	return list
}

// countersOf reads /proc/PID/net/dev (proc_pid_net(5)): a tenth of the system calls that a dump takes, and no lock of the
// kernel's. The directory stays that process's when its id is given to another.
func countersOf(netnsPath string, pid int) ([]InterfaceCounters, error) {
	proc, err := unix.Open("/proc/"+strconv.Itoa(pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(proc)
	var its, wanted unix.Stat_t
	if err := errors.Join(unix.Fstatat(proc, "ns/net", &its, 0), unix.Stat(netnsPath, &wanted)); err != nil {
		return nil, err
	}
	if its.Dev != wanted.Dev || its.Ino != wanted.Ino {
		return nil, fmt.Errorf("process %d is in another network namespace", pid)
	}
	fd, err := unix.Openat(proc, "net/dev", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	text := make([]byte, 0, 4096)
	for {
		n, err := unix.Read(fd, text[len(text):cap(text)])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, &os.PathError{Op: "read", Path: fmt.Sprintf("/proc/%d/net/dev", pid), Err: err}
		}
		if n == 0 {
			return parseCounters(text)
		}
		if text = text[:len(text)+n]; len(text) == cap(text) {
			text = append(text, 0)[:len(text)]
		}
	}
}

// parseCounters reads two lines of titles, and then lines of "name: " with eight numbers of what was received and eight of what
// was sent, each beginning with bytes, packets, errors and drops.
func parseCounters(text []byte) ([]InterfaceCounters, error) {
	var list []InterfaceCounters
	titles := 2
	for line := range bytes.Lines(text) {
		if titles > 0 {
			titles--
			continue
		}
		name, numbers, ok := bytes.Cut(bytes.TrimSpace(line), []byte{':'})
		c := InterfaceCounters{Name: string(name)}
		to := [16]*uint64{0: &c.RxBytes, 1: &c.RxPackets, 2: &c.RxErrors, 3: &c.RxDropped, 8: &c.TxBytes, 9: &c.TxPackets, 10: &c.TxErrors, 11: &c.TxDropped}
		n := 0
		for f := range bytes.FieldsSeq(numbers) {
			v, err := strconv.ParseUint(string(f), 10, 64)
			if err != nil {
				ok = false
			}
			if n < len(to) && to[n] != nil {
				*to[n] = v
			}
			n++
		}
		if !ok || n < len(to) || len(name) == 0 {
			return nil, fmt.Errorf("counters of an interface: %q", line)
		}
		list = append(list, c)
	}
	if titles > 0 {
		return nil, fmt.Errorf("counters of interfaces: %q", text)
	}
	return list, nil
}

// dumpCounters takes one netlink dump inside the namespace.
func dumpCounters(netnsPath string) (list []InterfaceCounters, err error) {
	err = netns.Do(netnsPath, func() error {
		links, err := netlink.LinkList()
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) { // when links come and go meanwhile, one may be missing
			return err
		}
		for _, l := range links {
			a := l.Attrs()
			c := InterfaceCounters{Name: a.Name}
			if s := a.Statistics; s != nil {
				c.RxBytes, c.RxPackets, c.RxErrors, c.RxDropped = s.RxBytes, s.RxPackets, s.RxErrors, s.RxDropped
				c.TxBytes, c.TxPackets, c.TxErrors, c.TxDropped = s.TxBytes, s.TxPackets, s.TxErrors, s.TxDropped
			}
			list = append(list, c)
		}
		return nil
	})
	return list, err
}
