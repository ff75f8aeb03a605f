//go:build cgo

package seccomp

import (
	"encoding/binary"
	"math"

	"golang.org/x/sys/unix"
)

// The kernel translates and compiles a filter anew for every process that loads it, and then runs it once for every
// syscall number, to remember which are always allowed. So its length is a part of what each container and each exec
// session costs, and libseccomp's filters have an instruction or two for every syscall. reduce makes the same decisions
// with a search tree over ranges of numbers. It works on the finished filter, by evaluating it for ranges of the
// architecture and the number; what looks at arguments is kept as it is.

// The offsets of struct seccomp_data.
const (
	offNr, offArch = 0, 4
	// maxSteps bounds the work for filters that are nothing like libseccomp's; docker's default takes 0.02 of it.
	maxSteps = 1 << 18
)

// value is what the accumulator holds: a word of struct seccomp_data and a mask.
type value struct{ off, mask uint32 }

// node is a decision of a filter, or with op 0 its result k. Equal nodes are one node, see reducer.node.
type node struct {
	op      uint16 // BPF_JEQ, BPF_JGT, BPF_JGE, BPF_JSET
	k       uint32
	on      value
	yes, no *node
}

// span is a range of numbers, both ends included.
type span struct{ lo, hi uint32 }

var every = span{0, math.MaxUint32}

// decide tells the outcome of a comparison for all of s. Where it differs it returns the parts of s that agree.
func (s span) decide(op uint16, k uint32) (yes bool, parts []span) {
	switch op {
	case unix.BPF_JEQ:
		if k < s.lo || k > s.hi {
			return false, nil
		}
		if s.lo == s.hi {
			return true, nil
		}
		if k > s.lo {
			parts = append(parts, span{s.lo, k - 1})
		}
		parts = append(parts, span{k, k})
		if k < s.hi {
			parts = append(parts, span{k + 1, s.hi})
		}
		return false, parts
	case unix.BPF_JGT:
		if k == math.MaxUint32 {
			return false, nil
		}
		k++
	}
	if k <= s.lo || k > s.hi {
		return k <= s.lo, nil
	}
	return false, []span{{s.lo, k - 1}, {k, s.hi}}
}

// area is what is known of a call at some place of the filter.
type area struct{ arch, nr span }

// state is a place of the filter, with what is known there.
type state struct {
	pc int
	a  value
	area
}

// result is what a filter does with an area.
type result struct {
	area
	node *node
}

type reducer struct {
	prog  []unix.SockFilter
	nodes map[node]*node
	known map[state]*node
	steps int
	ok    bool
}

// reduce returns a filter that decides like prog and is shorter, or prog.
func reduce(prog []byte) []byte {
	r := &reducer{nodes: map[node]*node{}, known: map[state]*node{}, ok: true}
	for b := prog; len(b) >= 8; b = b[8:] {
		r.prog = append(r.prog, unix.SockFilter{Code: binary.NativeEndian.Uint16(b), Jt: b[2], Jf: b[3], K: binary.NativeEndian.Uint32(b[4:])})
	}
	areas := r.areas(state{area: area{every, every}}, nil)
	if !r.ok {
		return prog
	}
	root := r.byArch(areas)
	if !r.ok {
		return prog
	}
	if short := generate(root); len(short) < len(r.prog) {
		return encode(short)
	}
	return prog
}

func encode(prog []unix.SockFilter) []byte {
	b := make([]byte, 0, 8*len(prog))
	for _, i := range prog {
		b = binary.NativeEndian.AppendUint16(b, i.Code)
		b = binary.NativeEndian.AppendUint32(append(b, i.Jt, i.Jf), i.K)
	}
	return b
}

// node returns the one node that is equal to n.
func (r *reducer) node(n node) *node {
	if n.op != 0 && n.yes == n.no {
		return n.yes
	}
	p := r.nodes[n]
	if p == nil {
		p = &n
		r.nodes[n] = p
	}
	return p
}

// fail gives up; the nodes made from then on mean nothing.
func (r *reducer) fail() *node {
	r.ok = false
	return &node{}
}

// step runs the filter from s up to a comparison that the area does not decide, or a result. parts are those of the
// architecture's or number's range that do decide the comparison at s.pc.
func (r *reducer) step(s *state) (end *node, parts []area) {
	for ; r.ok && s.pc < len(r.prog); s.pc++ {
		if r.steps++; r.steps > maxSteps {
			break
		}
		i := r.prog[s.pc]
		switch i.Code {
		case unix.BPF_RET | unix.BPF_K:
			return r.node(node{k: i.K}), nil
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			s.a = value{i.K, math.MaxUint32}
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			s.a.mask &= i.K
		case unix.BPF_JMP | unix.BPF_JA:
			if i.K >= uint32(len(r.prog)) {
				return r.fail(), nil
			}
			s.pc += int(i.K)
		case unix.BPF_JMP | unix.BPF_JEQ, unix.BPF_JMP | unix.BPF_JGT, unix.BPF_JMP | unix.BPF_JGE, unix.BPF_JMP | unix.BPF_JSET:
			yes, parts, known := s.compare(i.Code&0xf0, i.K)
			if len(parts) > 0 || !known {
				return nil, parts
			}
			if yes {
				s.pc += int(i.Jt)
			} else {
				s.pc += int(i.Jf)
			}
		default:
			return r.fail(), nil
		}
	}
	return r.fail(), nil
}

// compare decides a comparison of the accumulator from what is known. known is false for arguments.
func (s *state) compare(op uint16, k uint32) (yes bool, parts []area, known bool) {
	whole := s.a.mask == math.MaxUint32 && op != unix.BPF_JSET
	switch {
	case s.a.off == offNr && whole:
		yes, spans := s.nr.decide(op, k)
		for _, p := range spans {
			parts = append(parts, area{s.arch, p})
		}
		return yes, parts, true
	case s.a.off == offArch && whole:
		yes, spans := s.arch.decide(op, k)
		for _, p := range spans {
			parts = append(parts, area{p, s.nr})
		}
		return yes, parts, true
	}
	return false, nil, false
}

// areas splits s's area until the filter does one thing with each.
func (r *reducer) areas(s state, to []result) []result {
	start := s
	end, parts := r.step(&s)
	if len(parts) == 0 {
		if end == nil { // a comparison of an argument
			end = r.decisions(start)
		}
		return append(to, result{s.area, end})
	}
	for _, a := range parts {
		t := s
		t.area = a
		if to = r.areas(t, to); !r.ok {
			return nil
		}
	}
	return to
}

// decisions returns what the filter does from s on.
func (r *reducer) decisions(s state) *node {
	if n := r.known[s]; n != nil {
		return n
	}
	start := s
	n, _ := r.step(&s) // also where only a part of the area decides: it becomes a decision like others
	if n == nil && r.ok {
		i := r.prog[s.pc]
		yes, no := s, s
		yes.pc, no.pc = s.pc+1+int(i.Jt), s.pc+1+int(i.Jf)
		n = r.node(node{i.Code & 0xf0, i.K, s.a, r.decisions(yes), r.decisions(no)})
	}
	r.known[start] = n
	return n
}
