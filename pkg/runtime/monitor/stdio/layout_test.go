package stdio

import (
	"testing"
	"unsafe"
)

// TestJournalLayout: the journal is read by the next cri-monitor, which may be of another version. Who changes this changes
// the magic number too.
func TestJournalLayout(t *testing.T) {
	var h journalHeader
	var s slot
	for what, tt := range map[string][2]uintptr{
		"magic": {unsafe.Offsetof(h.magic), 0}, "phase": {unsafe.Offsetof(h.phase), 8}, "op": {unsafe.Offsetof(h.op), 16},
		"stream": {unsafe.Offsetof(h.stream), 24}, "n": {unsafe.Offsetof(h.n), 32}, "now": {unsafe.Offsetof(h.now), 40},
		"size": {unsafe.Offsetof(h.size), 48}, "part": {unsafe.Offsetof(h.part), 56}, "last": {unsafe.Offsetof(h.last), 64},
		"slot's part": {unsafe.Offsetof(s.part), 0}, "slot's last": {unsafe.Offsetof(s.last), 16}, "slot's mark": {unsafe.Offsetof(s.mark), 24},
		"slot's used": {unsafe.Offsetof(s.used), 28}, "slot": {unsafe.Sizeof(s), slotSize}, "space of a slot": {slotSize, 64},
		"buffer": {headerSpace, 4096}, "slots": {slotsAt, 266240}, "places": {placesAt, 528384}, "place": {placeSize, 16 << 10},
		"taken": {phaseTaken, 1}, "written": {phaseWritten, 2}, "append": {opAppend, 0}, "direct": {opDirect, 1}, "end": {opEnd, 2},
	} {
		if tt[0] != tt[1] {
			t.Errorf("%s is %d, in %q it was %d", what, tt[0], "CRIJRNL1", tt[1])
		}
	}
	if journalMagic != 0x314c4e524a495243 {
		t.Errorf("the magic number has changed: write down the layout that goes with it")
	}
}
