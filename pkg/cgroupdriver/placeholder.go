package cgroupdriver

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// placeholder is the first process of a scope: systemd makes a scope only around a process, and removes it with the last
// one. It is a program of a few hundred bytes that lives until the container's process has joined. It ends by itself
// when this server does, however that happens, because it reads from a pipe whose only other end the server holds; so
// a crash leaves no process behind, and an empty scope at most.
type placeholder struct {
	process *os.Process
	hold    *os.File
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
	return &placeholder{process: p, hold: w}, nil
}

// end lets the placeholder go and reaps it. SIGKILL too: a frozen process does not come to read.
func (p *placeholder) end() {
	p.hold.Close()
	_ = p.process.Kill()
	_, _ = p.process.Wait()
}

// placeholders are those that wait, by the path of their scope.
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

func (s *placeholders) end(path string) {
	s.mu.Lock()
	p := s.of[path]
	delete(s.of, path)
	s.mu.Unlock()
	if p != nil {
		p.end()
	}
}
