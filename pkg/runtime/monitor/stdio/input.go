package stdio

import "golang.org/x/sys/unix"

// input is the container's stdin.
type input struct {
	watch
	s       *Streams
	once    bool
	pending []byte // what the container has not taken yet; attachments are not read meanwhile
	closing bool   // close when pending is written
}

func (in *input) ready(events uint32) {
	if len(in.pending) == 0 {
		in.s.closeInput() // EPOLLERR: nobody reads any more
		return
	}
	in.flush()
}

// send passes p on. It keeps a copy of what the container does not take at once.
func (in *input) send(p []byte) {
	if in.fd < 0 {
		return
	}
	in.pending = append(in.pending, p...)
	in.flush()
}

func (in *input) flush() {
	for len(in.pending) > 0 {
		n, err := retryIntr(func() (int, error) { return unix.Write(in.fd, in.pending) })
		if again(err) || err == nil && n == 0 {
			if in.arm(unix.EPOLLOUT) != nil {
				in.s.closeInput()
			}
			return
		}
		if err != nil && in.s.terminal >= 0 { // EIO: nobody has the terminal open now
			break
		}
		if err != nil { // EPIPE: the container has closed it
			in.s.closeInput()
			return
		}
		in.pending = in.pending[n:]
	}
	in.pending = nil
	in.disarm()
	if in.closing {
		in.s.closeInput()
		return
	}
	for _, a := range in.s.attachments {
		a.resumeInput()
	}
}

// attachEnded is called when an attachment's input has come to its end.
func (in *input) attachEnded() {
	if !in.once || in.fd < 0 {
		return
	}
	if len(in.pending) > 0 {
		in.closing = true
		return
	}
	in.s.closeInput()
}

// closeInput closes the container's stdin; input that comes later has nowhere to go.
func (s *Streams) closeInput() {
	if s.in == nil {
		return
	}
	in := s.in
	s.in = nil
	in.watch.close()
	in.pending = nil
	for _, a := range s.attachments {
		a.closeInput()
	}
	if s.inputClosed != nil && s.terminal < 0 && !s.stopped {
		s.inputClosed()
	}
}
