package native

import (
	_ "embed"

	"golang.org/x/sys/unix"
)

//go:embed stub/stub_amd64
var stubImage []byte

const auditArch = unix.AUDIT_ARCH_X86_64
