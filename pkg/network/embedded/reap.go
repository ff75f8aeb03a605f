package embedded

import (
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// deadGroup is the link group ("crid") of links that wait for their deletion.
const deadGroup = 0x63726964

// reapDelay is how long they wait: most are gone with their namespace by then, without anybody's waiting for it.
const reapDelay = time.Second

// reaper deletes the links in deadGroup, all in one request, which costs the kernel the same grace periods as one link.
type reaper struct {
	log  *slog.Logger
	kick chan struct{}
	stop chan struct{}
	once sync.Once
	wg   sync.WaitGroup
}

func newReaper(log *slog.Logger) *reaper {
	r := &reaper{log: log, kick: make(chan struct{}, 1), stop: make(chan struct{})}
	r.wg.Go(r.run)
	return r
}

// later sees to it that links which were just put into the group are deleted.
func (r *reaper) later() {
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

func (r *reaper) run() {
	for {
		select {
		case <-r.stop:
			return
		case <-r.kick:
		}
		select {
		case <-r.stop:
		case <-time.After(reapDelay):
		}
		if err := deleteGroup(deadGroup); err != nil {
			r.log.Warn("links of removed pods can't be deleted", "err", err)
		}
	}
}

func (r *reaper) close() {
	r.once.Do(func() { close(r.stop) })
	r.wg.Wait()
}

// deleteGroup deletes every link in a group: RTM_DELLINK with IFLA_GROUP, Linux 2.6.38.
func deleteGroup(group uint32) error {
	req := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(group)))
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	if errors.Is(err, unix.ENODEV) { // none
		return nil
	}
	return wrap("delete links", err)
}
