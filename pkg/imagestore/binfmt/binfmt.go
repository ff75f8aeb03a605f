// Package binfmt finds out for which processors this machine runs programs by an interpreter such as qemu-user, which the kernel's
// binfmt_misc calls (Documentation/admin-guide/binfmt-misc.rst). It reads the registered interpreters anew each time, so that one
// that is installed later counts at once.
package binfmt

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Dir is where binfmt_misc is mounted.
const Dir = "/proc/sys/fs/binfmt_misc"

// machine is what an ELF header says of a processor, elf(5).
type machine struct {
	class byte // 1: 32 bits, 2: 64 bits
	order binary.ByteOrder
	code  uint16
}

// machines are GOARCH names, as image configs have them.
var machines = map[string]machine{
	"386":      {1, binary.LittleEndian, 3},
	"amd64":    {2, binary.LittleEndian, 62},
	"arm":      {1, binary.LittleEndian, 40},
	"arm64":    {2, binary.LittleEndian, 183},
	"loong64":  {2, binary.LittleEndian, 258},
	"mips64le": {2, binary.LittleEndian, 8},
	"ppc64le":  {2, binary.LittleEndian, 21},
	"riscv64":  {2, binary.LittleEndian, 243},
	"s390x":    {2, binary.BigEndian, 22},
}

// headers are the beginnings of a program for m: an executable, and a position-independent one.
func (m machine) headers() [][]byte {
	var out [][]byte
	for _, kind := range []uint16{2, 3} {
		h := make([]byte, 64)
		copy(h, "\x7fELF")
		h[4], h[5], h[6] = m.class, 1, 1
		if m.order == binary.BigEndian {
			h[5] = 2
		}
		m.order.PutUint16(h[16:], kind)
		m.order.PutUint16(h[18:], m.code)
		m.order.PutUint32(h[20:], 1)
		out = append(out, h)
	}
	return out
}

// Interpreter is the program that the kernel calls for programs of the architecture arch, as Dir says in dir. The error says why
// there is none.
func Interpreter(dir, arch string) (string, error) {
	m, ok := machines[arch]
	if !ok {
		return "", fmt.Errorf("architecture %.50q is not known", arch)
	}
	if b, err := readSmall(filepath.Join(dir, "status")); err != nil {
		return "", fmt.Errorf("binfmt_misc is not mounted on %s, so no interpreter for %s is known", dir, arch)
	} else if b != "enabled" {
		return "", errors.New("binfmt_misc is disabled")
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return "", err
	}
	reason := "no interpreter for " + arch + " is registered with binfmt_misc (Debian's qemu-user-static does that)"
	for _, f := range entries {
		if f.Name() == "status" || f.Name() == "register" {
			continue
		}
		text, err := readSmall(filepath.Join(dir, f.Name()))
		if err != nil {
			continue
		}
		e := parse(text)
		if !slices.ContainsFunc(m.headers(), e.matches) {
			continue
		}
		switch {
		case !e.enabled:
			reason = "the interpreter for " + arch + ", " + e.interpreter + ", is disabled in binfmt_misc"
		case !strings.Contains(e.flags, "F"):
			// Without it the kernel looks for the interpreter in the container's root.
			reason = "the interpreter for " + arch + ", " + e.interpreter + ", is registered without flag F and so isn't found from inside a container"
		default:
			return e.interpreter, nil
		}
	}
	return "", errors.New(reason)
}

// entry is one registered format.
type entry struct {
	enabled            bool
	interpreter, flags string
	offset             int
	magic, mask        []byte
}

func parse(text string) entry {
	var e entry
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch key {
		case "enabled":
			e.enabled = true
		case "interpreter":
			e.interpreter = value
		case "flags:":
			e.flags = value
		case "offset":
			e.offset, _ = strconv.Atoi(value)
		case "magic":
			e.magic, _ = hex.DecodeString(value)
		case "mask":
			e.mask, _ = hex.DecodeString(value)
		}
	}
	return e
}

func (e entry) matches(header []byte) bool {
	if len(e.magic) == 0 || e.offset < 0 || e.offset > len(header) || len(e.magic) > len(header)-e.offset {
		return false // also those that go by a file name's ending
	}
	for i, m := range e.magic {
		mask := byte(0xff)
		if i < len(e.mask) {
			mask = e.mask[i]
		}
		if header[e.offset+i]&mask != m&mask {
			return false
		}
	}
	return true
}

func readSmall(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 16<<10))
	return strings.TrimSpace(string(b)), err
}
