package native

import (
	_ "embed"

	"golang.org/x/sys/unix"
)

//go:embed stub/stub_arm64
var stubImage []byte

const auditArch = unix.AUDIT_ARCH_AARCH64
