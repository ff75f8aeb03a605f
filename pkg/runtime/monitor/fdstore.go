package monitor

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/seed-9a14075a/cri-server/pkg/runtime/monitor/stdio"
)

// fdStore is systemd's descriptor store of this process's unit (sd_pid_notify_with_fds(3), FDSTORE): what is in it comes
// to the next process of the unit. FDPOLL=0 (systemd 246) keeps pipes in it whose writers have gone.
//
// The manager ignores a descriptor that it has already, whatever its name, so each gets a name that depends on nothing
// but itself: "c/", the container's id, device and inode. A memfd "c/ID/state.N" tells their order, and what they
// are; the highest N counts whose descriptors are all there. The first loop's journal is "journal.0" to "journal.2", those of
// the others are "journal.N.0" to "journal.N.2".
type fdStore struct {
	fd    int
	log   *slog.Logger
	names map[string]map[string]bool // what is stored, by container
	seq   uint64

	mu    sync.Mutex
	queue []notice      // what the manager has not taken yet, in order
	idle  chan struct{} // closed when queue is empty again; nil while it is
}

// notice is one message. fd is the queue's own; -1: none.
type notice struct {
	text string
	fd   int
}

func openFDStore(socket string, log *slog.Logger) *fdStore {
	if socket == "" {
		return nil
	}
	fd, err := connectNotify(socket)
	if err != nil {
		log.Warn("the service manager keeps no descriptors", "err", err)
		return nil
	}
	return &fdStore{fd: fd, log: log, names: map[string]map[string]bool{}, seq: uint64(time.Now().UnixNano())}
}

// connectNotify opens a socket to the manager. A send waits for it, but not for long.
func connectNotify(socket string) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	tv := unix.NsecToTimeval(keepTime.Nanoseconds())
	if err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv); err == nil {
		err = unix.Connect(fd, &unix.SockaddrUnix{Name: socket}) // "@" is an abstract name
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// put stores v, and removes what is no longer part of it.
func (s *fdStore) put(v kept, fds []int) {
	if v.Synced {
		return
	}
	if number, ok := v.journal(); ok {
		for i, name := range journalNames(number) {
			s.send("FDSTOREREMOVE=1\nFDNAME="+name, -1)
			if i < len(fds) {
				s.send("FDSTORE=1\nFDPOLL=0\nFDNAME="+name, fds[i])
			}
		}
		return
	}
	old, now := s.names[v.ID], map[string]bool{}
	if v.Forget {
		delete(s.names, v.ID)
	} else {
		s.names[v.ID] = now
		st := storedState{ID: v.ID, Data: v.Data}
		for _, fd := range fds {
			name := storeName(v.ID, fd)
			st.Names = append(st.Names, name)
			if now[name] = true; !old[name] {
				s.send("FDSTORE=1\nFDPOLL=0\nFDNAME="+name, fd)
			}
		}
		fd, err := st.file()
		if err != nil {
			s.log.Error("container would not survive a restart of the unit", "container", v.ID, "err", err)
			return
		}
		s.seq++
		name := storePrefix(v.ID) + statePart + strconv.FormatUint(s.seq, 10)
		now[name] = true
		s.send("FDSTORE=1\nFDPOLL=0\nFDNAME="+name, fd)
		unix.Close(fd)
	}
	for name := range old {
		if !now[name] {
			s.send("FDSTOREREMOVE=1\nFDNAME="+name, -1)
		}
	}
}

// stored lists what is stored, for a program that goes on with it.
func (s *fdStore) stored() map[string][]string {
	all := map[string][]string{}
	for id, names := range s.names {
		all[id] = slices.Collect(maps.Keys(names))
	}
	return all
}

func (s *fdStore) resume(all map[string][]string) {
	for id, names := range all {
		s.names[id] = map[string]bool{}
		for _, name := range names {
			s.names[id][name] = true
		}
	}
}

func journalNames(number int) []string {
	prefix := "journal."
	if number > 0 {
		prefix += strconv.Itoa(number) + "."
	}
	return []string{prefix + "0", prefix + "1", prefix + "2"}
}

const statePart = "state."

func storePrefix(id string) string { return "c/" + id + "/" }

func storeName(id string, fd int) string {
	var st unix.Statx_t // which, unlike fstat(2), asks nothing of a file system that may hang
	_ = unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_INO, &st)
	return fmt.Sprintf("%s%x.%d", storePrefix(id), unix.Mkdev(st.Dev_major, st.Dev_minor), st.Ino)
}

// send tells the manager at once, or, when it is busy, as soon as it can be told: nothing here waits for it.
func (s *fdStore) send(text string, fd int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.idle == nil {
		err := s.tell(notice{text, fd}, unix.MSG_DONTWAIT)
		if err != unix.EAGAIN {
			return
		}
		s.idle = make(chan struct{})
		go s.drain()
	}
	own := -1
	if fd >= 0 {
		var err error
		if own, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3); err != nil {
			s.log.Error("a descriptor is not kept", "err", err)
			return
		}
	}
	s.queue = append(s.queue, notice{text, own})
}

func (s *fdStore) tell(n notice, flags int) error {
	var rights []byte
	if n.fd >= 0 {
		rights = unix.UnixRights(n.fd)
	}
	err := error(unix.EINTR)
	for err == unix.EINTR {
		err = unix.Sendmsg(s.fd, []byte(n.text), rights, nil, flags|unix.MSG_NOSIGNAL)
	}
	if err != nil && err != unix.EAGAIN {
		s.log.Error("the service manager takes no descriptors", "err", err)
	}
	return err
}

// drain sends what waits, and ends.
func (s *fdStore) drain() {
	for {
		s.mu.Lock()
		if len(s.queue) == 0 {
			close(s.idle)
			s.queue, s.idle = nil, nil
			s.mu.Unlock()
			return
		}
		n := s.queue[0]
		s.queue = s.queue[1:]
		s.mu.Unlock()
		for s.tell(n, 0) == unix.EAGAIN { // SO_SNDTIMEO
		}
		if n.fd >= 0 {
			unix.Close(n.fd)
		}
	}
}

// flush waits until all is sent.
func (s *fdStore) flush(ctx context.Context) error {
	s.mu.Lock()
	idle := s.idle
	s.mu.Unlock()
	if idle == nil {
		return nil
	}
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("the service manager does not take descriptors: %w: %w", ctx.Err(), errdefs.ErrUnavailable)
	}
}

// storedState is the content of a state file, behind its checksum.
type storedState struct {
	ID    string          `json:"id"`
	Names []string        `json:"names"`
	Data  json.RawMessage `json:"data"`
}

func (st *storedState) file() (int, error) {
	b, err := json.Marshal(st)
	if err != nil {
		return -1, err
	}
	fd, err := unix.MemfdCreate("cri-container", unix.MFD_CLOEXEC)
	if err != nil {
		return -1, err
	}
	b = append(binary.LittleEndian.AppendUint32(nil, crc32.ChecksumIEEE(b)), b...)
	if n, err := unix.Pwrite(fd, b, 0); err != nil || n != len(b) {
		unix.Close(fd)
		return -1, fmt.Errorf("memfd: %d of %d bytes: %w", n, len(b), err)
	}
	return fd, nil
}

// StoredFiles are the descriptors that the service manager has kept for this process; see sd_listen_fds_with_names(3).
// They are removed from the environment.
func StoredFiles() map[string]int {
	defer func() {
		for _, name := range []string{"LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "LISTEN_PIDFDID"} {
			_ = os.Unsetenv(name)
		}
	}()
	n, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if pid, perr := strconv.Atoi(os.Getenv("LISTEN_PID")); err != nil || perr != nil || pid != os.Getpid() {
		return nil
	}
	names := strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
	files := map[string]int{}
	for i := range n {
		fd := 3 + i
		unix.CloseOnExec(fd)
		name := "unknown"
		if i < len(names) {
			name = names[i]
		}
		if old, ok := files[name]; ok {
			unix.Close(old)
		}
		files[name] = fd
	}
	return files
}

// recall makes the parts for takeBack of what the manager has kept for a former process, and knows from now on that it
// is stored. It owns the files.
func (s *fdStore) recall(files map[string]int) []part {
	var parts []part
	take := func(names []string) (fds []int) {
		for _, name := range names {
			if _, ok := files[name]; !ok {
				return nil
			}
		}
		for _, name := range names {
			fds = append(fds, files[name])
			delete(files, name)
		}
		return fds
	}
	for number := range stdio.MaxLoops {
		if fds := take(journalNames(number)); fds != nil {
			parts = append(parts, part{kept: keptJournal(number), fds: fds})
		}
	}
	all := slices.Sorted(maps.Keys(files))
	for _, name := range newestFirst(all) {
		st, err := readStateFile(files[name])
		if err != nil {
			s.log.Error("what the service manager has kept can't be read", "name", name, "err", err)
			continue
		}
		if s.names[st.ID] != nil {
			continue
		}
		if fds := take(st.Names); fds != nil {
			parts = append(parts, part{kept: kept{ID: st.ID, Data: st.Data}, fds: fds})
			s.names[st.ID] = map[string]bool{}
			for _, name := range all { // so that what is old among it goes with the next picture
				if strings.HasPrefix(name, storePrefix(st.ID)) {
					s.names[st.ID][name] = true
				}
			}
		}
	}
	for _, fd := range files {
		unix.Close(fd)
	}
	return parts
}

// newestFirst returns the state files among names.
func newestFirst(names []string) []string {
	var states []string
	for _, name := range names {
		if pictureOf(name) > 0 {
			states = append(states, name)
		}
	}
	slices.SortFunc(states, func(a, b string) int { return cmp.Compare(pictureOf(b), pictureOf(a)) })
	return states
}

// pictureOf is the number of a state file; 0 for other names.
func pictureOf(name string) uint64 {
	_, n, ok := strings.Cut(name, "/"+statePart)
	if !ok {
		return 0
	}
	seq, _ := strconv.ParseUint(n, 10, 64)
	return seq
}

func readStateFile(fd int) (st storedState, err error) {
	var info unix.Stat_t
	if err := unix.Fstat(fd, &info); err != nil {
		return st, err
	}
	if info.Size < 4 || info.Size > maxBody {
		return st, fmt.Errorf("%d bytes", info.Size)
	}
	b := make([]byte, info.Size)
	if n, err := unix.Pread(fd, b, 0); err != nil || n != len(b) {
		return st, fmt.Errorf("%d of %d bytes: %w", n, len(b), err)
	}
	if crc32.ChecksumIEEE(b[4:]) != binary.LittleEndian.Uint32(b) {
		return st, fmt.Errorf("checksum does not match")
	}
	return st, json.Unmarshal(b[4:], &st)
}
