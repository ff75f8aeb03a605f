//go:build cgo

package seccomp

import (
	"cmp"
	"math"
	"slices"

	"golang.org/x/sys/unix"
)

var theArch, theNr = value{offArch, math.MaxUint32}, value{offNr, math.MaxUint32}

// byArch makes the decision between architectures. Those that the filter does not name must have one result.
func (r *reducer) byArch(all []result) *node {
	arches := map[span][]result{}
	for _, a := range all {
		arches[a.arch] = append(arches[a.arch], a)
	}
	var other *node
	var named []uint32
	trees := map[uint32]*node{}
	for arch, results := range arches {
		n := r.byNumber(results)
		if arch.lo == arch.hi {
			named = append(named, arch.lo)
			trees[arch.lo] = n
			continue
		}
		if other != nil && other != n {
			return r.fail()
		}
		other = n
	}
	if other == nil {
		return r.fail()
	}
	slices.SortFunc(named, func(a, b uint32) int { return cmp.Compare(b, a) }) // the 64-bit ones have the higher values
	n := other
	for _, arch := range slices.Backward(named) {
		n = r.node(node{unix.BPF_JEQ, arch, theArch, trees[arch], n})
	}
	return n
}

// byNumber makes the decision between syscall numbers.
func (r *reducer) byNumber(list []result) *node {
	slices.SortFunc(list, func(a, b result) int { return cmp.Compare(a.nr.lo, b.nr.lo) })
	var merged []result
	next := uint64(0)
	for _, a := range list {
		if uint64(a.nr.lo) != next { // the filter has looked at the number before the architecture
			return r.fail()
		}
		next = uint64(a.nr.hi) + 1
		if n := len(merged); n > 0 && merged[n-1].node == a.node {
			merged[n-1].nr.hi = a.nr.hi
			continue
		}
		merged = append(merged, a)
	}
	if next != 1<<32 {
		return r.fail()
	}
	return r.tree(merged)
}

// tree searches a list of ranges without gaps. A number that differs from both its neighbours costs one comparison where
// it is left for the end, so ranges are split elsewhere.
func (r *reducer) tree(list []result) *node {
	const few = 3 // exceptions that are looked for one after the other
	if n, ok := r.exceptions(list, few); ok {
		return n
	}
	at := len(list) / 2
	for d := range min(at, len(list)-at) {
		if !lone(list, at-d) && !lone(list, at-d-1) {
			at -= d
			break
		}
		if at+d < len(list) && !lone(list, at+d) && !lone(list, at+d-1) {
			at += d
			break
		}
	}
	return r.node(node{unix.BPF_JGE, list[at].nr.lo, theNr, r.tree(list[at:]), r.tree(list[:at])})
}

// lone tells whether list[i] is one number between two ranges with the same result.
func lone(list []result, i int) bool {
	return i > 0 && i < len(list)-1 && list[i].nr.lo == list[i].nr.hi && list[i-1].node == list[i+1].node
}

// exceptions makes comparisons for up to limit single numbers in what is one range besides.
func (r *reducer) exceptions(list []result, limit int) (*node, bool) {
	if len(list) == 1 {
		return list[0].node, true
	}
	if len(list) > 2*limit+1 {
		return nil, false
	}
	for first := range 2 { // the list begins with the range, or with an exception
		if first == 1 && list[0].nr.lo != list[0].nr.hi || first >= len(list) {
			continue
		}
		rest, n, ok := list[first].node, list[first].node, true
		for i := len(list) - 1; i >= 0; i-- {
			switch a := list[i]; {
			case a.node == rest:
			case a.nr.lo == a.nr.hi:
				n = r.node(node{unix.BPF_JEQ, a.nr.lo, theNr, a.node, n})
			default:
				ok = false
			}
		}
		if ok {
			return n, true
		}
	}
	return nil, false
}

// generator writes a filter from its end to its start: jumps of classic BPF go forward only, so that all they lead to is
// there when they are written.
type generator struct {
	back   []unix.SockFilter  // the last instruction first
	rets   map[uint32]int     // the last place of each result
	bodies map[*node]int      // the place of a decision for which the accumulator is loaded
	loads  map[*node]int      // the place that loads it before
	fresh  map[*node]struct{} // decisions that some way comes to with something else in the accumulator
}

// reach is how far conditional jumps go; it leaves room for what is put in between.
const reach = math.MaxUint8 - 4

func generate(root *node) []unix.SockFilter {
	g := &generator{rets: map[uint32]int{}, bodies: map[*node]int{}, loads: map[*node]int{}, fresh: map[*node]struct{}{}}
	g.mark(root, value{}, map[*node]bool{})
	g.write(root)
	slices.Reverse(g.back)
	return g.back
}

func (g *generator) mark(n *node, loaded value, seen map[*node]bool) {
	if n.op == 0 {
		return
	}
	if n.on != loaded {
		g.fresh[n] = struct{}{}
	}
	if seen[n] {
		return
	}
	seen[n] = true
	g.mark(n.yes, n.on, seen)
	g.mark(n.no, n.on, seen)
}

func (g *generator) put(code uint16, jt, jf int, k uint32) int {
	g.back = append(g.back, unix.SockFilter{Code: code, Jt: uint8(jt), Jf: uint8(jf), K: k})
	return len(g.back) - 1
}

// write writes what n needs, unless it is there.
func (g *generator) write(n *node) {
	if n.op == 0 {
		if _, ok := g.rets[n.k]; !ok {
			g.rets[n.k] = g.put(unix.BPF_RET|unix.BPF_K, 0, 0, n.k)
		}
		return
	}
	if _, ok := g.bodies[n]; ok {
		return
	}
	g.write(n.yes)
	g.write(n.no)
	yes, no := g.near(n.yes, n.on), g.near(n.no, n.on)
	at := len(g.back)
	g.bodies[n] = g.put(unix.BPF_JMP|n.op, at-yes-1, at-no-1, n.k)
	if _, ok := g.fresh[n]; !ok {
		return
	}
	if n.on.mask != math.MaxUint32 {
		g.put(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, 0, 0, n.on.mask)
	}
	g.loads[n] = g.put(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, 0, 0, n.on.off)
}

// near returns a place within reach from where n is entered.
func (g *generator) near(n *node, loaded value) int {
	if n.op == 0 {
		if len(g.back)-g.rets[n.k] > reach {
			g.rets[n.k] = g.put(unix.BPF_RET|unix.BPF_K, 0, 0, n.k)
		}
		return g.rets[n.k]
	}
	at := g.bodies[n]
	if n.on != loaded {
		at = g.loads[n]
	}
	if d := len(g.back) - at; d > reach {
		at = g.put(unix.BPF_JMP|unix.BPF_JA, 0, 0, uint32(d-1))
	}
	return at
}
