package monitor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"sort"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/internal/holder"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/engine"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/monitor/stdio"
	"github.com/seed-9a14075a/cri-server/pkg/runtime/reaper"
)

// ServerConfig is what a Server needs.
type ServerConfig struct {
	// Socket is where it listens, mode 0600. A stale socket file is replaced.
	Socket string
	// StateDir holds the lock file and the engines' per-container directories. It gets mode 0711: the root of a
	// container's user namespace passes through on the way to its bundle, nobody can list it.
	StateDir string
	// Build names the version of this program, for Version.
	Build string
	Log   *slog.Logger
	// Engine returns the engine for a container: the native one for nil.
	Engine func(*OCIRuntime) (engine.Engine, error)
	// Reaper is the engines'. It is needed by Upgrade only.
	Reaper *reaper.Reaper
	// Replace goes on in another program; see Upgrader. Nil: Upgrade is refused.
	Replace Upgrader
	// Notify is the socket of systemd's service manager, "" if there is none: it keeps descriptors, see sd_notify(3).
	Notify string
	// Stored are the descriptors that it has kept of a cri-monitor that has died, see StoredFiles; its containers are
	// taken back.
	Stored map[string]int
}

// trimAfter is how long after the last Create the heap's free pages go back to the kernel: specs are large while they
// are decoded, and a process that lives for months should not keep that. (To collect less often in a burst, as cri-server does,
// would spare 7 % of its CPU there, and leave what stays of each pod among the holes of what does not: 10 to 20 KiB a pod.)
const trimAfter = 3 * time.Second

// Server is cri-monitor. All containers of one Server live in its process.
type Server struct {
	cfg     ServerConfig
	log     *slog.Logger
	version Version
	loops   *stdio.Loops
	events  events
	// oomScoreAdj is what processes get whose spec asks for nothing: the monitor's own before it lowered it.
	oomScoreAdj int

	trim *time.Timer // gives memory back after a burst of creates

	lock *os.File
	ln   *net.UnixListener

	freezer freezer
	keepers keepers

	mu         sync.RWMutex // held for map operations only, never over a system call
	containers map[string]*container
	conns      map[*conn]struct{}
	closing    bool
	left       []string // directories of containers that are gone, see removeLater

	upgrading sync.Mutex

	work sync.WaitGroup // connections and exits being handled
}

// newServer returns a Server without its lock, socket and loop.
func newServer(cfg ServerConfig) *Server {
	s := &Server{
		cfg: cfg, log: cfg.Log,
		version:     Version{Protocol: protocolMax, Build: cfg.Build, Pid: os.Getpid(), Started: time.Now()},
		oomScoreAdj: ownOOMScoreAdj(),
		containers:  map[string]*container{},
		conns:       map[*conn]struct{}{},
		trim:        time.AfterFunc(trimAfter, debug.FreeOSMemory),
	}
	s.keepers.store = openFDStore(cfg.Notify, cfg.Log)
	return s
}

// NewServer takes the lock in StateDir and the socket. ErrAlreadyExists when another cri-monitor has them.
func NewServer(cfg ServerConfig) (*Server, error) {
	s := newServer(cfg)
	bundles := filepath.Join(cfg.StateDir, "containers")
	if err := errors.Join(os.MkdirAll(bundles, 0o711), os.Chmod(cfg.StateDir, 0o711), os.Chmod(bundles, 0o711)); err != nil {
		return nil, fmt.Errorf("state directory: %w", err)
	}
	var err error
	if s.lock, err = lockSoon(cfg.StateDir, cfg.Socket); err != nil {
		return nil, err
	}
	if s.loops, err = stdio.New(cfg.Log, s.keepJournal); err != nil {
		s.lock.Close()
		return nil, err
	}
	s.recall(cfg.Stored)
	if err := noteUnit(cfg.StateDir, cfg.Notify != ""); err != nil {
		s.log.Warn("cri-server does not learn that a service manager starts this program", "err", err)
	}
	if s.ln, err = listen(cfg.Socket); err != nil {
		s.lock.Close()
		return nil, err
	}
	return s, nil
}

// recall takes back what the service manager has kept.
func (s *Server) recall(files map[string]int) {
	store := s.keepers.store
	if store == nil {
		for _, fd := range files {
			unix.Close(fd)
		}
		return
	}
	parts := store.recall(files)
	if !slices.ContainsFunc(parts, func(p part) bool { return p.Journal }) {
		store.put(keptJournal(0), s.loops.Journals()[0])
	}
	ctx, cancel := context.WithTimeout(context.Background(), callTime)
	defer cancel()
	s.takeBack(ctx, parts)
}

// deathTime is how long the lock of a process that is being killed may stay.
const deathTime = 2 * time.Second

// lockSoon takes the lock, for which it waits while nobody serves the socket: a process that was killed closes its
// files one after the other.
func lockSoon(dir, socket string) (*os.File, error) {
	for end := time.Now().Add(deathTime); ; time.Sleep(time.Millisecond) {
		f, err := lockDir(dir)
		if !errdefs.IsAlreadyExists(err) || time.Now().After(end) {
			return f, err
		}
		if c, derr := net.Dial("unix", socket); derr == nil {
			c.Close()
			return nil, err
		}
	}
}

// lockDir takes the flock(2) that keeps a second server away.
func lockDir(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock of %s: %w", dir, err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if err == unix.EWOULDBLOCK {
			who := cmp.Or(holder.Of(f), "another process")
			return nil, fmt.Errorf("another cri-monitor has %s: its lock is held by %s: %w", dir, who, errdefs.ErrAlreadyExists)
		}
		return nil, fmt.Errorf("lock of %s: %w", dir, err)
	}
	return f, nil
}

// listen makes the socket beside its place and renames it, so that it never shows with a wrong mode.
func listen(path string) (*net.UnixListener, error) {
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return nil, fmt.Errorf("another process serves %s: %w", path, errdefs.ErrAlreadyExists)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, fmt.Errorf("socket directory: %w", err)
	}
	tmp := path + ".new"
	_ = os.Remove(tmp)
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	ln.SetUnlinkOnClose(false)
	if err = os.Chmod(tmp, 0o600); err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		_ = os.Remove(tmp)
		ln.Close()
		return nil, fmt.Errorf("socket %s: %w", path, err)
	}
	return ln, nil
}

// Serve answers until Shutdown has succeeded, then returns nil.
func (s *Server) Serve() error {
	s.freezer.enter(1)
	for _, c := range s.connections() { // of a former process
		c.start()
	}
	for {
		c, err := s.ln.AcceptUnix()
		if err == nil {
			s.accept(c)
			continue
		}
		if errors.Is(err, net.ErrClosed) {
			break
		}
		if errors.Is(err, os.ErrDeadlineExceeded) { // a freeze
			s.freezer.leave()
			for entered := false; !entered; _, entered = s.freezer.enter(1) {
				<-s.freezer.thawed()
			}
			continue
		}
		// EMFILE and such pass; containers depend on this process, so it stays.
		s.log.Error("accept", "err", err)
		time.Sleep(100 * time.Millisecond)
	}
	s.mu.Lock()
	for c := range s.conns {
		c.finish()
	}
	s.mu.Unlock()
	s.work.Wait()
	s.trim.Stop()
	s.loops.Close()
	s.lock.Close()
	return nil
}

// Shutdown makes Serve return. ErrFailedPrecondition while containers exist: their processes would lose their parent.
func (s *Server) Shutdown() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.containers); n > 0 {
		return fmt.Errorf("%d containers exist: %w", n, errdefs.ErrFailedPrecondition)
	}
	if !s.closing {
		s.closing = true
		_ = os.Remove(s.cfg.Socket)
		s.ln.Close()
	}
	return nil
}

// accept starts to serve a connection, if root made it.
func (s *Server) accept(uc *net.UnixConn) {
	if err := checkPeer(uc); err != nil {
		s.log.Warn("connection refused", "err", err)
		uc.Close()
		return
	}
	c := s.newConn(uc)
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		c.close()
		return
	}
	s.conns[c] = struct{}{}
	s.mu.Unlock()
	c.start()
}

func checkPeer(uc *net.UnixConn) error {
	raw, err := uc.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); cerr != nil {
		return cerr
	}
	if err == nil && cred.Uid != 0 {
		err = fmt.Errorf("peer has uid %d, only root may connect: %w", cred.Uid, errdefs.ErrPermissionDenied)
	}
	return err
}

// find returns a container that was created.
func (s *Server) find(id string) (*container, error) {
	s.mu.RLock()
	c := s.containers[id]
	s.mu.RUnlock()
	if c == nil || c.state.Load() == nil {
		return nil, fmt.Errorf("container %q: %w", id, errdefs.ErrNotFound)
	}
	return c, nil
}

// list returns the state of all containers, by id.
func (s *Server) list() []State {
	s.mu.RLock()
	states := make([]State, 0, len(s.containers))
	for _, c := range s.containers {
		if st := c.state.Load(); st != nil {
			states = append(states, *st)
		}
	}
	s.mu.RUnlock()
	sort.Slice(states, func(i, j int) bool { return states[i].ID < states[j].ID })
	return states
}
