package cgroupdriver

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// placeholder keeps a scope: systemd makes a scope only around a process, and removes it with the last one. It is a
// program of a few hundred bytes. Until the container's process has joined, it ends by itself when this server does,
// however that happens, because it reads from a pipe whose only other end the server holds: a crash leaves no process
// behind, and an empty scope at most. After that it watches the container's process, whether the server lives or not,
// and outlives it for long enough that cri-monitor can read in the cgroup why it ended: without it systemd would be
// faster now and then, and a container killed for want of memory would look like any other.
type placeholder struct {
	process *os.Process
	hold    *os.File // nil once it watches
}

// placeholderProgram is the program in sealed memory, made once.
var placeholderProgram = sync.OnceValues(func() (*os.File, error) {
	fd, err := unix.MemfdCreate("cri-placeholder", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), "cri-placeholder")
	if _, err := f.Write(placeholderBinary); err != nil {
		f.Close()
		return nil, err
	}
	// Best effort: a container that gets at it through /proc/PID/exe must not change it.
	_, _ = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL)
	return f, nil
})

func startPlaceholder() (_ *placeholder, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("placeholder of a scope: %w", err)
		}
	}()
	program, err := placeholderProgram()
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	p, err := os.StartProcess(fmt.Sprintf("/proc/self/fd/%d", program.Fd()), []string{"cri-placeholder"},
		&os.ProcAttr{Dir: "/", Env: []string{}, Files: []*os.File{r, nil, nil}})
	if err != nil {
		w.Close()
		return nil, err
	}
	// With memory.oom.group the kernel kills all of the cgroup but those that are at the minimum.
	_ = os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", p.Pid), []byte("-1000"), 0)
	return &placeholder{process: p, hold: w}, nil
}

// isPlaceholder tells by the name that a process goes by, which is one that no program of a container has by chance.
func isPlaceholder(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	return err == nil && string(b) == "cri-placeholder\n"
}

// watch lets the placeholder stay as long as a process, and a little longer.
func (p *placeholder) watch(pid int) error {
	_, err := p.hold.Write(binary.NativeEndian.AppendUint32(nil, uint32(pid)))
	p.hold.Close()
	p.hold = nil
	return err
}

// end ends and reaps the placeholder.
func (p *placeholder) end() {
	if p.hold != nil {
		p.hold.Close()
	}
	_ = p.process.Kill()
	_, _ = p.process.Wait()
}

// placeholders are this server's, by the path of their scope.
type placeholders struct {
	mu sync.Mutex
	of map[string]*placeholder
}

func (s *placeholders) put(path string, p *placeholder) {
	s.mu.Lock()
	old := s.of[path]
	s.of[path] = p
	s.mu.Unlock()
	if old != nil {
		old.end()
	}
}

// watch has the placeholder of a scope watch a process. ErrNotFound: this server has none there.
func (s *placeholders) watch(path string, pid int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.of[path]
	if p == nil {
		return fmt.Errorf("placeholder: %w", errdefs.ErrNotFound)
	}
	if p.hold == nil {
		return nil // it does
	}
	return p.watch(pid)
}

func (s *placeholders) end(path string) {
	s.mu.Lock()
	p := s.of[path]
	delete(s.of, path)
	s.mu.Unlock()
	if p != nil {
		p.end()
	}
}
