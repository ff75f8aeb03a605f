package cgroupdriver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	sd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
)

const (
	// callTimeout bounds one request to systemd, with everything that follows from it (sd_bus_call(3) waits as long).
	callTimeout = 25 * time.Second
	dialTimeout = 5 * time.Second
	redialPause = 50 * time.Millisecond

	sdName    = "org.freedesktop.systemd1"
	sdPath    = "/org/freedesktop/systemd1"
	sdManager = sdName + ".Manager"

	// privateSocket is systemd's own, for root: no dbus-daemon stands between, or need run at all.
	privateSocket = "/run/systemd/private"
	systemBus     = "/run/dbus/system_bus_socket"
)

// errLost: the connection broke while a job was waited for; nobody tells how it went.
var errLost = errors.New("the connection to systemd was lost")

// bus is one connection to systemd, made when it is needed and made anew when systemd or the bus was restarted.
type bus struct {
	log     *slog.Logger
	sockets [2]string // systemd's own, and the system bus

	dialing sync.Mutex // also guards conn
	conn    *dbus.Conn

	mu      sync.Mutex
	waiting map[string][]chan jobResult // by unit
}

type jobResult struct {
	job    dbus.ObjectPath
	result string
}

func newBus(log *slog.Logger) *bus {
	return &bus{log: log, sockets: [2]string{privateSocket, systemBus}, waiting: map[string][]chan jobResult{}}
}

// DeliverSignal implements dbus.SignalHandler. It runs on the connection's reader and must not block.
func (b *bus) DeliverSignal(iface, name string, s *dbus.Signal) {
	if iface != sdManager || name != "JobRemoved" {
		return
	}
	var id uint32
	var r jobResult
	var unit string
	if dbus.Store(s.Body, &id, &r.job, &unit, &r.result) != nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, ch := range b.waiting[unit] {
		select {
		case ch <- r:
		default: // never read: its waiter has gone
		}
	}
}

func (b *bus) wait(unit string) (results chan jobResult, done func()) {
	ch := make(chan jobResult, 16)
	b.mu.Lock()
	b.waiting[unit] = append(b.waiting[unit], ch)
	b.mu.Unlock()
	return ch, func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		left := slices.DeleteFunc(b.waiting[unit], func(c chan jobResult) bool { return c == ch })
		if b.waiting[unit] = left; len(left) == 0 {
			delete(b.waiting, unit)
		}
	}
}

// get returns the connection.
func (b *bus) get(ctx context.Context) (*dbus.Conn, error) {
	b.dialing.Lock()
	defer b.dialing.Unlock()
	if b.conn != nil && b.conn.Connected() {
		return b.conn, nil
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := b.dial(ctx, b.sockets[0], greet)
	if err != nil {
		var viaBus error
		if conn, viaBus = b.dial(ctx, b.sockets[1], subscribe); viaBus != nil {
			return nil, errors.Join(err, viaBus)
		}
	}
	if b.conn != nil {
		b.log.Info("connected to systemd again")
	}
	b.conn = conn
	return conn, nil
}

func (b *bus) dial(ctx context.Context, socket string, open func(context.Context, *dbus.Conn) error) (*dbus.Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	deadline, _ := ctx.Deadline()
	_ = c.SetDeadline(deadline)
	conn, err := dbus.NewConn(&quiet{Conn: c}, dbus.WithSignalHandler(b))
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("%s: %w", socket, err)
	}
	if err := conn.Auth([]dbus.Auth{dbus.AuthExternal(strconv.Itoa(os.Geteuid()))}); err != nil {
		conn.Close()
		return nil, fmt.Errorf("%s: authenticate: %w", socket, err)
	}
	if err := open(ctx, conn); err != nil {
		conn.Close()
		return nil, fmt.Errorf("%s: %w", socket, err)
	}
	_ = c.SetDeadline(time.Time{})
	return conn, nil
}

// greet waits for the first answer. systemd (sd-bus, at least up to 252) that gets a request together with the end of the
// authentication looks at it only when more comes; so more is sent until one is answered.
func greet(ctx context.Context, conn *dbus.Conn) error {
	const ping = "org.freedesktop.DBus.Peer.Ping"
	replies := make(chan *dbus.Call, 32) // at most 12 before dialTimeout
	for pause := 2 * time.Millisecond; ; pause *= 2 {
		conn.Object(sdName, sdPath).GoWithContext(ctx, ping, 0, replies)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case r := <-replies:
			return r.Err
		case <-time.After(pause):
		}
	}
}

// subscribe is what the system bus needs before it sends signals.
func subscribe(ctx context.Context, conn *dbus.Conn) error {
	if err := conn.Hello(); err != nil {
		return err
	}
	if err := conn.AddMatchSignalContext(ctx, dbus.WithMatchInterface(sdManager), dbus.WithMatchMember("JobRemoved")); err != nil {
		return err
	}
	return conn.Object(sdName, sdPath).CallWithContext(ctx, sdManager+".Subscribe", 0).Err
}

// call sends one request and stores its reply. While systemd can't be reached (it executes itself anew, or the bus is
// restarted) it is sent again, so it must be one that may be done twice. An answer that is an error is returned as the
// dbus.Error that it is.
func (b *bus) call(ctx context.Context, path dbus.ObjectPath, method string, reply []any, args ...any) (*dbus.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	for {
		conn, err := b.get(ctx)
		if err == nil {
			call := conn.Object(sdName, path).CallWithContext(ctx, method, 0, args...)
			if err = call.Err; err == nil {
				return conn, call.Store(reply...)
			}
			if name := errorName(err); name != "" && !away[name] {
				return conn, err
			}
			if ctx.Err() == nil && conn.Connected() {
				conn.Close() // it is of no use any more
			}
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("systemd does not answer: %w: %w", errors.Join(err, ctx.Err()), errdefs.ErrUnavailable)
		case <-time.After(redialPause):
		}
	}
}

// away are the errors with which the bus, or the end of a connection, answers in systemd's place.
var away = map[string]bool{
	"org.freedesktop.DBus.Error.Disconnected": true, "org.freedesktop.DBus.Error.NoReply": true,
	"org.freedesktop.DBus.Error.ServiceUnknown": true, "org.freedesktop.DBus.Error.NameHasNoOwner": true,
}

// job asks the manager for a job on unit and waits for its result: done, canceled, timeout, failed, dependency, skipped.
// The reply is errLost when nobody tells any more.
func (b *bus) job(ctx context.Context, unit, method string, args ...any) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	results, done := b.wait(unit) // before the call: the job may be done before its reply is read
	defer done()
	var job dbus.ObjectPath
	conn, err := b.call(ctx, sdPath, sdManager+"."+method, []any{&job}, args...)
	if err != nil {
		return "", err
	}
	for {
		select {
		case r := <-results:
			if r.job == job {
				return r.result, nil
			}
		case <-conn.Context().Done():
			return "", errLost
		case <-ctx.Done():
			return "", fmt.Errorf("systemd does not finish the job %s of %s: %w: %w", method, unit, ctx.Err(), errdefs.ErrUnavailable)
		}
	}
}

// property reads a property of a unit.
func (b *bus) property(ctx context.Context, unit, name string) (string, error) {
	var v dbus.Variant
	path := dbus.ObjectPath(sdPath + "/unit/" + sd.PathBusEscape(unit))
	if _, err := b.call(ctx, path, "org.freedesktop.DBus.Properties.Get", []any{&v}, sdName+".Unit", name); err != nil {
		return "", err
	}
	s, _ := v.Value().(string)
	return s, nil
}

// version is systemd's major one: "252.39-1~deb12u2" is 252.
func (b *bus) version(ctx context.Context) (int, error) {
	var v dbus.Variant
	if _, err := b.call(ctx, sdPath, "org.freedesktop.DBus.Properties.Get", []any{&v}, sdManager, "Version"); err != nil {
		return 0, err
	}
	s, _ := v.Value().(string)
	return parseVersion(s)
}

func parseVersion(s string) (int, error) {
	digits := s
	if len(digits) > 0 && digits[0] == 'v' {
		digits = digits[1:]
	}
	for i, c := range digits {
		if c < '0' || c > '9' {
			digits = digits[:i]
			break
		}
	}
	n, err := strconv.Atoi(digits)
	if err != nil {
		return 0, fmt.Errorf("systemd's version %q: %w", s, errdefs.ErrInvalidArgument)
	}
	return n, nil
}

// errorName is the D-Bus name of an error that systemd answered with; "" of any other.
func errorName(err error) string {
	var v dbus.Error
	var p *dbus.Error
	switch {
	case errors.As(err, &v):
		return v.Name
	case errors.As(err, &p):
		return p.Name
	}
	return ""
}

func (b *bus) close() {
	b.dialing.Lock()
	defer b.dialing.Unlock()
	if b.conn != nil {
		b.conn.Close()
	}
}
